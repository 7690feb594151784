"""Adaptive pooling in plain torch: pool at every stride, then gather rows in one index.

All frames are pooled at all three strides, which stores 1/4 + 1/16 + 1/64 of the grid. So the
caller can free a chunk's full-resolution features before it encodes the next chunk.

Shape suffixes: T frames, P patches of a frame, D features, N packed tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.kernels.adaptive_pool.index import pack_index

MODES = ("bilinear", "average", "area")

# Rows and columns of a frame's patches, or one number for both.
Grid = int | tuple[int, int]


def sides_of(grid: Grid) -> tuple[int, int]:
    """Rows and columns."""
    return (grid, grid) if isinstance(grid, int) else grid


def pooled_sides(grid: Grid, stride: int, mode: str) -> tuple[int, int]:
    """Rows and columns of a pooled frame."""
    rows, columns = sides_of(grid)
    if mode == "average":
        return rows // stride, columns // stride
    return -(-rows // stride), -(-columns // stride)


def pool_frames(x_TPD: Tensor, grid: Grid, stride: int, mode: str = "bilinear") -> Tensor:
    """Every frame pooled at one stride: [T, pooled, D].

    Bilinear as LLaVA-OneVision's `apply_pooling` (sides ceil(side/stride)), average as LongVA's
    `get_2dPool` (floor). Area (ceil) is the mean of the patches that a cell has: cells at the last
    row and column may have fewer than stride^2. Raises ValueError when the patches do not fill the
    grid or the mode is unknown.
    """
    T, P, D = x_TPD.shape
    rows, columns = sides_of(grid)
    if rows * columns != P:
        shape = tuple(x_TPD.shape)
        raise ValueError(f"expected {rows}x{columns} patches a frame, got {P} in {shape}")
    if mode not in MODES:
        raise ValueError(f"pooling mode must be one of {MODES}, got {mode!r}")
    sides = pooled_sides(grid, stride, mode)
    if 0 in sides:
        return x_TPD.new_empty(T, 0, D)  # which torch's pooling rejects
    x = x_TPD.view(T, rows, columns, D).permute(0, 3, 1, 2)
    if mode == "bilinear":
        x = F.interpolate(x, size=sides, mode="bilinear")
    else:
        x = F.avg_pool2d(x, stride, ceil_mode=mode == "area", count_include_pad=False)
    return x.permute(0, 2, 3, 1).reshape(T, -1, D)


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor | None,
    grid: Grid,
    strides: tuple[int, int, int],
    mode: str,
    total: int,
    closes_events: bool,
    row_newline: bool,
    separator_SD: Tensor | None,
    head_T: Tensor | None,
    tail_T: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the package."""
    pooled = [pool_frames(x_TPD, grid, stride, mode).flatten(0, 1) for stride in strides]
    row_N, event_N = pack_index(
        class_T,
        event_T,
        [pooled_sides(grid, stride, mode) for stride in strides],
        total,
        closes_events=closes_events,
        row_newline=row_newline,
        head_T=head_T,
        tail_T=tail_T,
    )
    given = [newline_D[None]] if newline_D is not None and (closes_events or row_newline) else []
    if separator_SD is not None:
        given.append(separator_SD)
    return torch.cat([*pooled, *(rows.to(x_TPD.dtype) for rows in given)])[row_N], event_N
