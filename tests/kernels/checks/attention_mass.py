"""Attention mass against naive loops: lengths, head sizes, groups, types, strides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metok_vllm.kernels.attention_mass import attention_mass, naive
from tests.kernels.checks import DTYPES, SIZES, Check, assert_close, generator, poisoned, short

# Both sides see the same rounded inputs; what is left is how float32 sums are rounded, for the
# narrower types inside the tensor cores.
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-5, torch.bfloat16: 2e-5}


@dataclass(frozen=True)
class Shape:
    """Requests and heads of one check."""

    query_lens: tuple[int, ...]
    key_lens: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 1
    head_size: int = 64
    dtype: torch.dtype = torch.float32
    fused: bool = False  # queries and keys as slices of one tensor, as a projection leaves them
    gain: float = 1.0


def checks() -> Iterator[Check]:
    """All checks of this operation."""
    for name, shape in _shapes():
        yield Check("attention_mass", name, partial(_run, name, shape))
    yield Check("attention_mass", "a bad request stays alone", _run_beside_nan)


def _shapes() -> Iterator[tuple[str, Shape]]:
    for dtype in DTYPES:
        for size in SIZES:
            narrow = Shape((min(size, 3),), (size,), head_size=32, dtype=dtype)
            yield f"{size} keys {short(dtype)}", narrow
        mixed = ((2, 0, 33, 1, 5), (130, 4, 33, 1, 70))
        yield f"mixed lengths {short(dtype)}", Shape(*mixed, 4, 2, dtype=dtype)
        for head_size in (64, 80, 96, 128, 256):
            yield (
                f"head size {head_size} {short(dtype)}",
                Shape((5, 1), (70, 33), head_size=head_size, dtype=dtype),
            )
        yield (
            f"slices of one tensor {short(dtype)}",
            Shape((4,), (40,), 6, 2, 64, dtype, fused=True),
        )
    yield "one head each", Shape((3,), (50,), 3, 3)
    yield "seven heads a group", Shape((20,), (70,), 14, 2)
    yield "tiny heads", Shape((3, 2), (20, 9), 4, 2, 8)
    yield "sharp logits", Shape((5,), (100,), gain=30.0)
    yield "only queries", Shape((37,), (37,))
    yield "no queries anywhere", Shape((0, 0), (5, 9))
    yield "an empty request", Shape((2, 0, 1), (7, 0, 3))
    yield "no requests", Shape((), ())


def _inputs(name: str, shape: Shape) -> tuple[Tensor, Tensor]:
    random = generator(name)
    queries, keys = sum(shape.query_lens), sum(shape.key_lens)
    if shape.fused:
        heads = shape.heads + 2 * shape.kv_heads
        fused = torch.randn(keys, heads, shape.head_size, generator=random).to(shape.dtype)
        last = fused[keys - queries :]
        return last[:, : shape.heads], fused[:, shape.heads : shape.heads + shape.kv_heads]
    q_QHD = torch.randn(queries, shape.heads, shape.head_size, generator=random)
    k_NGD = torch.randn(keys, shape.kv_heads, shape.head_size, generator=random)
    return (q_QHD * shape.gain).to(shape.dtype), k_NGD.to(shape.dtype)


def _run(name: str, shape: Shape, device: str) -> None:
    q_QHD, k_NGD = _inputs(name, shape)
    scale = shape.head_size**-0.5
    expected_N = naive.attention_mass(q_QHD, k_NGD, shape.query_lens, shape.key_lens, scale)
    # A copy to a device would lose the strides: what the slices are cut from has to move.
    q, k = (x if device == "cpu" else _moved(x, device) for x in (q_QHD, k_NGD))
    with poisoned():
        mass_N = attention_mass(q, k, shape.query_lens, shape.key_lens, scale)
    assert mass_N.dtype == torch.float32
    gain = max(1.0, shape.gain)
    assert_close(mass_N, expected_N, BOUNDS[shape.dtype] * gain)
    sums = [float(part.sum()) for part in mass_N.cpu().split(list(shape.key_lens))]
    for total, queries in zip(sums, shape.query_lens, strict=False):
        assert abs(total - (queries > 0)) < 1e-4 * gain, (total, queries)


def _run_beside_nan(device: str) -> None:
    shape = Shape((2, 3, 2), (50, 70, 40))
    q_QHD, k_NGD = _inputs("a bad request stays alone", shape)
    q_QHD[2:5], k_NGD[50:120] = torch.nan, torch.nan
    scale = shape.head_size**-0.5
    lens = (shape.query_lens, shape.key_lens)
    mass_N = attention_mass(q_QHD.to(device), k_NGD.to(device), *lens, scale)
    expected_N = naive.attention_mass(q_QHD, k_NGD, *lens, scale)
    for part in (slice(0, 50), slice(120, 160)):
        assert_close(mass_N[part], expected_N[part], BOUNDS[shape.dtype])
    assert mass_N[50:120].isnan().any()


def _moved(x: Tensor, device: str) -> Tensor:
    base = x if x._base is None else x._base
    return base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())
