"""Compiles every kernel for GPUs that need not be present, and reports registers and spills.

    python -m metok_vllm.benchmarks.kernels.compiled [--capability 90]

Triton does not return these numbers. They are parsed from the log of `ptxas -v`, which Triton can
print. An empty cache forces ptxas to run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from metok_vllm.benchmarks.kernels.launches import Launch, recording
from metok_vllm.benchmarks.kernels.models import (
    EVENTS,
    LLAVA_ONEVISION_7B,
    MODELS,
    STRIDES,
    ModelSizes,
)
from metok_vllm.kernels.adaptive_pool import triton as pooling
from metok_vllm.kernels.attention_mass import triton as mass
from metok_vllm.kernels.event_topk import triton as topk
from metok_vllm.kernels.gather_rows import triton as gather

CAPABILITIES = (80, 90, 100)
# The head sizes of served models, and the widest tile of each type.
ATTENTION = (
    *((torch.bfloat16, head_size) for head_size in (64, 96, 128, 256)),
    (torch.float16, 128),
    (torch.float32, 128),
)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FRAMES = 64


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target. Spills in bytes of stores and loads together."""

    name: str
    kernel: str
    capability: int
    registers: int
    spilled: int
    shared_bytes: int


def launches() -> dict[str, Launch]:
    """Every kernel with the types and sizes of served models, by the name of the variant."""
    found: dict[str, Launch] = {}
    for dtype in DTYPES:
        calls: list[tuple[str, Callable[[], None]]] = [
            (f"D={size}", partial(_attention, dtype, size))
            for narrow, size in ATTENTION
            if narrow == dtype
        ]
        if dtype != torch.float16:  # nearly the same code as for bfloat16
            calls += [(model.mode, partial(_pooling, dtype, model)) for model in MODELS]
            calls += [("area with separators", partial(_rectangles, dtype))]
            calls += [("one row", partial(_one_row, dtype))]
        calls += [("", partial(_rows, dtype))]
        for variant, call in calls:
            with recording(pooling, mass, topk, gather) as recorded:
                call()
            for launch in recorded:
                words = [launch.kernel.__name__, str(dtype).removeprefix("torch."), variant]
                # Both two-byte types launch the same copy kernel.
                if launch not in found.values():
                    found[" ".join(filter(None, words))] = launch
    return found


def compile_launch(name: str, launch: Launch, capability: int) -> Compiled:
    """Compile one launch, from source to cubin. AssertionError if ptxas logs nothing."""
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as cache,
        triton.knobs.cache.scope(),
        triton.knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        triton.knobs.cache.dir = cache
        triton.knobs.nvidia.dump_ptxas_log = True
        binary = triton.compile(
            launch.source(), target=GPUTarget("cuda", capability, 32), options=launch.options
        )
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    assert registers, log.getvalue()
    assert len(spills) == 2, log.getvalue()
    return Compiled(
        name,
        launch.kernel.__name__,
        capability,
        int(registers[1]),
        sum(map(int, spills)),
        binary.metadata.shared,
    )


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(dtype: torch.dtype, head_size: int) -> None:
    model, keys = LLAVA_ONEVISION_7B, LLAVA_ONEVISION_7B.tokens(FRAMES)
    q_QHD = _empty(60, model.heads, head_size, dtype=dtype)
    k_NGD = _empty(keys, model.kv_heads, head_size, dtype=dtype)
    mass.attention_mass(q_QHD, k_NGD, [60], [keys], head_size**-0.5)


def _pooling(dtype: torch.dtype, model: ModelSizes) -> None:
    x_TPD = _empty(FRAMES, model.grid**2, model.hidden, dtype=dtype)
    frame_T = _empty(FRAMES, dtype=torch.int64)
    newline_D = _empty(model.hidden, dtype=dtype)
    how = (model.grid, STRIDES, model.mode, model.tokens(FRAMES), True, False, None, None, None)
    pooling.adaptive_pool(x_TPD, frame_T, frame_T, newline_D, *how)


def _rectangles(dtype: torch.dtype) -> None:
    """Qwen3-VL: features of three more levels beside each other, timestamps around each frame."""
    hidden = 4 * 4096
    x_TPD = _empty(FRAMES, 12 * 21, hidden, dtype=dtype)
    frame_T = _empty(FRAMES, dtype=torch.int64)
    separator_SD = _empty(9 * FRAMES, hidden, dtype=dtype)
    how = ((12, 21), (1, 2, 4), "area", FRAMES * (63 + 9), False, False)
    pooling.adaptive_pool(x_TPD, frame_T, frame_T, None, *how, separator_SD, frame_T, frame_T)


def _one_row(dtype: torch.dtype) -> None:
    """Numbers that are 1 become constants of the kernel."""
    hidden = LLAVA_ONEVISION_7B.hidden
    x_TPD, frame_T = _empty(1, 16, hidden, dtype=dtype), _empty(1, dtype=torch.int64)
    how = ((1, 16), STRIDES, "bilinear", 9, True, False, None, None, None)
    pooling.adaptive_pool(x_TPD, frame_T, frame_T, _empty(hidden, dtype=dtype), *how)


def _rows(dtype: torch.dtype) -> None:
    model, tokens = LLAVA_ONEVISION_7B, LLAVA_ONEVISION_7B.tokens(FRAMES)
    kept = tokens // 2
    index = _empty(kept, dtype=torch.int64)
    hidden = _empty(tokens, model.hidden, dtype=dtype)
    positions = _empty(tokens, dtype=torch.int64)
    gather.gather_rows(index, hidden, hidden, positions)
    score_N = _empty(tokens, dtype=dtype)
    topk.event_topk(score_N, positions, _empty(EVENTS, dtype=torch.int64), kept)


def main() -> None:
    """One line of JSON a kernel and target."""
    parser = argparse.ArgumentParser(description="compile every kernel, without a GPU")
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, nargs="*")
    capabilities: list[int] = parser.parse_args().capability or list(CAPABILITIES)
    for capability in capabilities:
        for name, launch in launches().items():
            print(json.dumps(asdict(compile_launch(name, launch, capability))), flush=True)


if __name__ == "__main__":
    main()
