"""Gathering rows against one row at a time: bits must not change."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metok_vllm.kernels.gather_rows import gather_rows, naive
from tests.kernels.checks import DTYPES, SIZES, Check, assert_same, generator, poisoned, short


def checks() -> Iterator[Check]:
    """All checks of this operation."""
    for size in SIZES:
        for dtype in DTYPES:
            case = f"{size} rows {short(dtype)}"
            random = generator(case)
            hidden = torch.randn(size, 37, generator=random).to(dtype)
            yield _check(case, min(size, 40), hidden, hidden + 1, torch.arange(size))
        wide = torch.randn(9, size, generator=generator(f"{size} wide"))
        yield _check(f"{size} wide", 6, wide)
    x = torch.randn(50, 4, 3, generator=generator("x"))
    hidden = x.flatten(1)
    yield _check("a residual that is not there", 20, hidden, None, torch.arange(50))
    yield _check("nothing but None", 20, None, rows=50)
    yield _check("five tensors", 20, x, hidden, x.bfloat16(), x.double(), x > 0)
    yield _check("every other row", 20, x[::2], hidden[::2])
    yield _check("columns of a wider tensor", 20, hidden[:, 2:7], hidden.T.contiguous().T)
    yield _check("NaN and infinity", 20, hidden / 0.0, (hidden * torch.nan).half())
    yield _check("no rows kept", 0, hidden, torch.arange(50))
    yield _check("rows without numbers", 5, hidden[:, :0])
    yield _check("32-bit rows", 20, hidden, dtype=torch.int32)


def _check(
    case: str,
    kept: int,
    *tensors: Tensor | None,
    rows: int = 0,
    dtype: torch.dtype = torch.int64,
) -> Check:
    def run(device: str) -> None:
        N = next((len(x) for x in tensors if x is not None), rows)
        index_M = torch.randint(0, N, (kept,), generator=generator(case)).to(dtype)
        expected = naive.gather_rows(index_M, *tensors)
        moved = [None if x is None else x.to(device) for x in tensors]
        with poisoned():
            gathered = gather_rows(index_M.to(device), *moved)
        for actual, wanted in zip(gathered, expected, strict=True):
            assert_same(actual, wanted)
            assert actual is None or actual.is_contiguous()

    return Check("gather_rows", case, run)
