"""`make gpu-check`: every kernel checked and timed on a GPU.

    python tools/gpu_check.py [--dry-run]

Needs torch, Triton and a CUDA device only. First it runs the checks of tests/kernels with Triton
and with torch, and checks that no operation waits for the device. If all pass, it times every
operation against its floor at the sizes of LLaVA-OneVision-7B and LongVA-7B. The last line is JSON.
Exit status: 0 passed, 1 a check failed, 2 no CUDA device.

`--dry-run` runs every timed call once on the CPU at a toy size, and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from metok_vllm.benchmarks.kernels import timing
from metok_vllm.benchmarks.kernels.models import MODELS, ModelSizes
from metok_vllm.benchmarks.kernels.workloads import Work, works
from metok_vllm.kernels.backend import VARIABLE
from tests.kernels.checks.registry import results

FRAMES = (32, 64, 128, 256, 512, 1000)
IMPLEMENTATIONS = ("triton", "torch")
COLUMNS = ("operation", "model", "frames", "floor_us", "triton_us", "times_floor", "torch_us")


def failures() -> Iterator[str]:
    """Errors of the checks on this GPU; prints the number of checks."""
    for implementation in IMPLEMENTATIONS:
        os.environ[VARIABLE] = implementation
        made = list(results("cuda"))
        print(f"{implementation}: {len(made)} checks against the naive versions", flush=True)
        yield from (f"{implementation}: {r['check']}: {r['error']}" for r in made if r["error"])
        for work in works(MODELS[0], FRAMES[0], "cuda"):
            error = _waits(work)
            if error:
                yield f"{implementation}: {work.operation} waits for the device: {error}"


def _waits(work: Work) -> str | None:
    work.call()  # compiles and allocates, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.call()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def measure(
    model: ModelSizes, frames: int, ceilings: tuple[float, float]
) -> Iterator[dict[str, object]]:
    """One row an operation, in microseconds."""
    for work in works(model, frames, "cuda"):
        floor = work.floor_seconds(*ceilings)
        seconds = {}
        for implementation in IMPLEMENTATIONS if work.triton else ("torch",):
            os.environ[VARIABLE] = implementation
            seconds[implementation] = timing.median_seconds(work.call)
        best = seconds.get("triton")
        yield {
            "operation": work.operation,
            "model": model.name,
            "frames": frames,
            "floor_us": round(floor * 1e6, 1),
            "triton_us": None if best is None else round(best * 1e6, 1),
            "times_floor": round(seconds.get("triton", seconds["torch"]) / floor, 2),
            "torch_us": round(seconds["torch"] * 1e6, 1),
        }


def dry_run() -> int:
    """Run every timed call once on the CPU at a toy size."""
    os.environ[VARIABLE] = "torch"
    for model in MODELS:
        small = replace(model, hidden=8, heads=4, kv_heads=2, head_size=8)
        for work in works(small, 7, "cpu", torch.float32):
            work.call()
            print(f"{work.operation} ({model.name}): ran")
    print("dry run: nothing was timed")
    return 0


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description="check and time every kernel on a GPU")
    parser.add_argument("--dry-run", action="store_true", help="call everything once on the CPU")
    if parser.parse_args().dry_run:
        return dry_run()
    if not torch.cuda.is_available():
        print(
            f"gpu-check needs a CUDA device; torch {torch.__version__} sees none", file=sys.stderr
        )
        return 2
    broken = list(failures())
    print(*broken, sep="\n")
    rows: list[dict[str, object]] = []
    summary: dict[str, object] = {"device": torch.cuda.get_device_name(), "failed": broken}
    if broken:
        print(f"{len(broken)} checks failed: nothing is timed")
    else:
        ceilings = timing.bytes_per_second(), timing.flops_per_second()
        summary |= {"bytes_per_second": ceilings[0], "flops_per_second": ceilings[1]}
        print(f"{ceilings[0] / 1e12:.2f} TB/s copied, {ceilings[1] / 1e12:.0f} TFLOP/s bfloat16")
        print("  ".join(COLUMNS))
        for model in MODELS:
            for frames in FRAMES:
                for row in measure(model, frames, ceilings):
                    print("  ".join(str(row[column]) for column in COLUMNS), flush=True)
                    rows.append(row)
    import triton

    versions = {"torch": torch.__version__, "triton": triton.__version__}
    print(json.dumps(summary | versions | {"rows": rows}))
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
