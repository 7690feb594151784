"""Adaptive pooling in plain torch: pool at every stride, then gather rows in one index.

All frames are pooled at all three strides, which stores 1/4 + 1/16 + 1/64 of the grid. So the
caller can free a chunk's full-resolution features before it encodes the next chunk.

Shape suffixes: T frames, P patches of a frame, D features, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("bilinear", "average")

# Rows and columns of a frame's patches, or one number for both.
Grid = int | tuple[int, int]


def sides_of(grid: Grid) -> tuple[int, int]:
    """Rows and columns."""
    return (grid, grid) if isinstance(grid, int) else grid


def pooled_sides(grid: Grid, stride: int, mode: str) -> tuple[int, int]:
    """Rows and columns of a pooled frame."""
    rows, columns = sides_of(grid)
    if mode == "bilinear":
        return -(-rows // stride), -(-columns // stride)
    return rows // stride, columns // stride


def pool_frames(x_TPD: Tensor, grid: Grid, stride: int, mode: str = "bilinear") -> Tensor:
    """Every frame pooled at one stride: [T, pooled, D].

    Bilinear as LLaVA-OneVision's `apply_pooling` (sides ceil(side/stride)), average as LongVA's
    `get_2dPool` (floor). Raises ValueError when the patches do not fill the grid or the mode is
    unknown.
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
        x = F.avg_pool2d(x, stride)
    return x.permute(0, 2, 3, 1).reshape(T, -1, D)


def pack_index(
    class_T: Tensor,
    event_T: Tensor,
    sides_of_class: Sequence[tuple[int, int]],
    total: int,
    *,
    closes_events: bool = True,
    row_newline: bool = False,
) -> tuple[Tensor, Tensor]:
    """Row of each packed token, and its event: two int64 tensors of length `total`.

    Rows address the concatenation [all frames fine | all medium | all coarse | newline];
    `sides_of_class` are the rows and columns of a pooled frame of each class. `total` is known from
    the budget, so nothing here waits for the device.
    """
    T = class_T.shape[0]
    device = class_T.device
    fine, medium, coarse = (height * width for height, width in sides_of_class)
    newline = T * (fine + medium + coarse)
    closes_T = torch.zeros_like(event_T)
    if closes_events:
        closes_T[-1:] = 1
        closes_T[:-1] = event_T[1:] - event_T[:-1]
    # Python numbers become kernel arguments; a table would have to be copied to the device.
    is_fine, is_medium = class_T == 0, class_T == 1

    def of_class(first: int, second: int, third: int) -> Tensor:
        return torch.where(is_fine, first, torch.where(is_medium, second, third))

    pooled_T = of_class(fine, medium, coarse)
    first_of_class_T = of_class(0, T * fine, T * (fine + medium))
    length_T = pooled_T
    if row_newline:
        (_, width0), (_, width1), (_, width2) = sides_of_class
        length_T = of_class(*(height * (width + 1) for height, width in sides_of_class))
    end_T = (length_T + closes_T).cumsum(0)
    position_N = torch.arange(total, device=device)
    frame_N = torch.searchsorted(end_T, position_N, right=True).clamp_(max=T - 1)
    within_N = position_N - (end_T - length_T - closes_T)[frame_N]
    first_T = first_of_class_T + torch.arange(T, device=device) * pooled_T
    feature_N, is_feature_N = within_N, within_N < length_T[frame_N]
    if row_newline:
        width_N = of_class(width0, width1, width2)[frame_N]
        line_N, place_N = within_N // (width_N + 1), within_N % (width_N + 1)
        feature_N = line_N * width_N + place_N
        is_feature_N = is_feature_N & (place_N < width_N)
    row_N = torch.where(is_feature_N, first_T[frame_N] + feature_N, newline)
    return row_N, event_T[frame_N]


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
) -> tuple[Tensor, Tensor]:
    """See the package."""
    pooled = [pool_frames(x_TPD, grid, stride, mode).flatten(0, 1) for stride in strides]
    sides = [pooled_sides(grid, stride, mode) for stride in strides]
    row_N, event_N = pack_index(
        class_T, event_T, sides, total, closes_events=closes_events, row_newline=row_newline
    )
    newline = [] if newline_D is None else [newline_D[None].to(x_TPD.dtype)]
    return torch.cat([*pooled, *newline])[row_N], event_N
