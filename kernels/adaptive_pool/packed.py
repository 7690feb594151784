"""Adaptive pooling in plain torch: pool at every stride, then gather rows in one index.

All frames are pooled at all three strides, which stores 1/4 + 1/16 + 1/64 of the grid. So the
caller can free a chunk's full-resolution features before it encodes the next chunk.

Shape suffixes: T frames, P patches of a frame, D features, N packed tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("bilinear", "average")


def pooled_side(grid: int, stride: int, mode: str) -> int:
    """Tokens of a pooled frame in one direction."""
    return -(-grid // stride) if mode == "bilinear" else grid // stride


def pool_frames(x_TPD: Tensor, grid: int, stride: int, mode: str = "bilinear") -> Tensor:
    """Every frame pooled at one stride: [T, pooled, D].

    Bilinear as LLaVA-OneVision's `apply_pooling` (side ceil(grid/stride)), average as LLaVA-NeXT
    (floor). Raises ValueError when the patches are not grid x grid or the mode is unknown.
    """
    T, P, D = x_TPD.shape
    if grid * grid != P:
        raise ValueError(f"expected {grid}x{grid} patches a frame, got {P} in {tuple(x_TPD.shape)}")
    if mode not in MODES:
        raise ValueError(f"pooling mode must be one of {MODES}, got {mode!r}")
    x = x_TPD.view(T, grid, grid, D).permute(0, 3, 1, 2)
    if mode == "bilinear":
        side = pooled_side(grid, stride, mode)
        x = F.interpolate(x, size=(side, side), mode="bilinear")
    elif stride > grid:
        return x_TPD.new_empty(T, 0, D)  # floor(grid/stride) is 0, which torch rejects
    else:
        x = F.avg_pool2d(x, stride)
    return x.permute(0, 2, 3, 1).reshape(T, -1, D)


def pack_index(
    class_T: Tensor, event_T: Tensor, tokens_per_class: tuple[int, int, int], total: int
) -> tuple[Tensor, Tensor]:
    """Row of each packed token, and its event: two int64 tensors of length `total`.

    Rows address the concatenation [all frames fine | all medium | all coarse | newline]. `total`
    is known from the budget, so nothing here waits for the device.
    """
    T = class_T.shape[0]
    device = class_T.device
    fine, medium, coarse = tokens_per_class
    newline = T * (fine + medium + coarse)
    closes_T = torch.ones_like(event_T)
    closes_T[:-1] = event_T[1:] - event_T[:-1]
    # Python numbers become kernel arguments; a table would have to be copied to the device.
    is_fine, is_medium = class_T == 0, class_T == 1
    pooled_T = torch.where(is_fine, fine, torch.where(is_medium, medium, coarse))
    first_of_class_T = torch.where(
        is_fine, 0, torch.where(is_medium, T * fine, T * (fine + medium))
    )
    end_T = (pooled_T + closes_T).cumsum(0)
    position_N = torch.arange(total, device=device)
    frame_N = torch.searchsorted(end_T, position_N, right=True).clamp_(max=T - 1)
    within_N = position_N - (end_T - pooled_T - closes_T)[frame_N]
    first_T = first_of_class_T + torch.arange(T, device=device) * pooled_T
    row_N = torch.where(within_N < pooled_T[frame_N], first_T[frame_N] + within_N, newline)
    return row_N, event_T[frame_N]


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor,
    grid: int,
    strides: tuple[int, int, int],
    mode: str,
    total: int,
) -> tuple[Tensor, Tensor]:
    """See the package."""
    pooled = [pool_frames(x_TPD, grid, stride, mode) for stride in strides]
    sizes = (pooled[0].shape[1], pooled[1].shape[1], pooled[2].shape[1])
    row_N, event_N = pack_index(class_T, event_T, sizes, total)
    rows = torch.cat([*(p.flatten(0, 1) for p in pooled), newline_D[None].to(x_TPD.dtype)])
    return rows[row_N], event_N
