"""Gather rows in Triton: up to three tensors in one launch, copied as integers of equal width.

Floor: every kept row is read once and written once, plus 8 bytes of index a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from metok_vllm.kernels.jit import jit

TILE = 1024
PER_LAUNCH = 3
_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gather_rows(index_M: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """See the package."""
    outputs = [None if x is None else x.new_empty(len(index_M), *x.shape[1:]) for x in tensors]
    pairs = [
        (x, y)
        for x, y in zip(tensors, outputs, strict=True)
        if x is not None and y is not None and y.numel()
    ]
    for start in range(0, len(pairs), PER_LAUNCH):
        _launch(index_M.contiguous(), pairs[start : start + PER_LAUNCH])
    return tuple(outputs)


def _launch(index_M: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    arguments: list[Any] = []
    widest = 0
    for x, y in pairs:
        source = _as_integers(x)
        target = _as_integers(y)
        arguments += [source, target, source.stride(0), target.shape[1]]
        widest = max(widest, target.shape[1])
    arguments += [None, None, 0, 0] * (PER_LAUNCH - len(pairs))
    gather_rows_kernel[(len(index_M), triton.cdiv(widest, TILE))](index_M, *arguments, TILE=TILE)


def _as_integers(x: Tensor) -> Tensor:
    """[N, numbers of a row], each row in one piece. Copies bits, NaN payloads included."""
    rows = x.reshape(len(x), -1)
    return (rows if rows.stride(1) == 1 else rows.contiguous()).view(_SAME_WIDTH[x.element_size()])


@jit
def gather_rows_kernel(
    index: tl.tensor,
    x0: tl.tensor,
    y0: tl.tensor,
    stride0: tl.tensor,
    width0: tl.tensor,
    x1: tl.tensor,
    y1: tl.tensor,
    stride1: tl.tensor,
    width1: tl.tensor,
    x2: tl.tensor,
    y2: tl.tensor,
    stride2: tl.tensor,
    width2: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """One tile of one row of each tensor; absent tensors are None."""
    m = tl.program_id(0).to(tl.int64)
    row = tl.load(index + m).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    copy_tile(x0, y0, stride0, width0, row, m, column)
    if x1 is not None:
        copy_tile(x1, y1, stride1, width1, row, m, column)
    if x2 is not None:
        copy_tile(x2, y2, stride2, width2, row, m, column)


@jit
def copy_tile(
    x: tl.tensor,
    y: tl.tensor,
    stride: tl.tensor,
    width: tl.tensor,
    row: tl.tensor,
    m: tl.tensor,
    column: tl.tensor,
) -> None:
    """Copy columns of one row of x, up to its width, to row m of y."""
    value = tl.load(x + row * stride + column, mask=column < width)
    tl.store(y + m * width + column, value, mask=column < width)
