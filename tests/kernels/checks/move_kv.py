"""Moving KV against slot by slot, in the memory layouts that vLLM 0.32 gives its CUDA backends."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metok_vllm.kernels.move_kv import move_kv, naive
from tests.kernels.checks import DTYPES, SIZES, Check, assert_same, generator, poisoned, short

# Axes L, B, G, S, C in the order they lie in memory.
LAYOUTS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}


def checks() -> Iterator[Check]:
    """All checks of this operation."""
    for layout in LAYOUTS:
        yield _check(f"layout {layout}", layout, 60)
    for dtype in (*DTYPES, torch.uint8):
        yield _check(f"cycles {short(dtype)}", "LBNHC", 100, dtype)
    for size in SIZES:
        yield _check(f"{size} slots", "LBHNC", size, blocks=160)
    yield _check("to the front", "LBNHC", 90, order="front")
    yield _check("one head, wide", "LBNHC", 50, heads=1, content=1100)
    yield _check("32-bit slots", "LBNHC", 50, slots=torch.int32)
    yield _check("nothing to move", "LBNHC", 0)


def _check(
    case: str,
    layout: str,
    moved: int,
    dtype: torch.dtype = torch.float32,
    blocks: int = 12,
    heads: int = 2,
    content: int = 24,
    order: str = "any",
    slots: torch.dtype = torch.int64,
) -> Check:
    def run(device: str) -> None:
        random = generator(case)
        cache = _cache(layout, (3, blocks, heads, 16, content), dtype, random)
        from_M = torch.randperm(blocks * 16, generator=random)[:moved].to(slots)
        to_M = torch.randperm(blocks * 16, generator=random)[:moved].to(slots)
        if order == "front":
            from_M, to_M = from_M.sort().values, torch.arange(moved)
        actual = _copy(cache, device)
        with poisoned():
            move_kv(actual[1], from_M.to(device), to_M.to(device))
        expected = _copy(cache, "cpu")
        naive.move_kv(expected[1], from_M, to_M)
        # The other layers, too: they lie between this one's blocks.
        assert_same(actual, expected)

    return Check("move_kv", case, run)


def _cache(
    layout: str, shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator
) -> Tensor:
    order = LAYOUTS[layout]
    memory = torch.randint(0, 256, [shape[axis] for axis in order], generator=random).to(dtype)
    return memory.permute([order.index(axis) for axis in range(5)])


def _copy(cache: Tensor, device: str) -> Tensor:
    copy = torch.empty_strided(cache.shape, cache.stride(), dtype=cache.dtype, device=device)
    return copy.copy_(cache)
