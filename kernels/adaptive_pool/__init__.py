"""Adaptive pooling: frames with stride classes to one packed token sequence.

For frame t of class c with stride s, its G x G patches are pooled to ceil(G/s)^2 (bilinear) or
floor(G/s)^2 (average) tokens; after the last frame of each event comes one newline token.

Shape suffixes: T frames, P patches of a frame, D features, N packed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metok_vllm.kernels.adaptive_pool import packed
from metok_vllm.kernels.adaptive_pool.packed import (
    MODES,
    pack_index,
    pool_frames,
    pooled_side,
)
from metok_vllm.kernels.backend import implementation_for, require

__all__ = ["adaptive_pool", "pack_index", "pool_frames"]


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor,
    grid: int,
    strides: tuple[int, int, int],
    mode: str = "bilinear",
    total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Frames at the stride of their class, in time order, a newline after each event.

    `class_T` (int64) holds 0, 1 or 2, `event_T` (int64) rises from 0 in steps of one. Returns
    tokens [N, D] and the event of each token, int64 [N]. `total` is N where the caller knows it;
    otherwise it is read from the classes, which waits for the device. Raises ValueError for
    shapes, dtypes or a mode outside this contract.
    """
    if mode not in MODES:
        raise ValueError(f"pooling mode must be one of {MODES}, got {mode!r}")
    require(
        x_TPD.ndim == 3 and x_TPD.shape[1] == grid * grid and x_TPD.is_floating_point(),
        f"float features [T, {grid}x{grid}, D]",
        features=x_TPD,
    )
    T, _, D = x_TPD.shape
    require(
        class_T.shape == event_T.shape == (T,)
        and class_T.dtype == event_T.dtype == torch.int64
        and newline_D.shape == (D,)
        and x_TPD.device == class_T.device == event_T.device == newline_D.device,
        f"int64 classes and events [{T}] and a newline [{D}] beside the features",
        classes=class_T,
        events=event_T,
        newline=newline_D,
    )
    if T == 0:
        return x_TPD.new_empty(0, D), event_T
    if total is None:
        sizes = [pooled_side(grid, stride, mode) ** 2 for stride in strides]
        size_C = torch.tensor(sizes, device=class_T.device)
        total = int(size_C[class_T].sum() + event_T[-1] + 1)
    if implementation_for(x_TPD) == "triton":
        from metok_vllm.kernels.adaptive_pool import triton

        return triton.adaptive_pool(x_TPD, class_T, event_T, newline_D, grid, strides, mode, total)
    return packed.adaptive_pool(x_TPD, class_T, event_T, newline_D, grid, strides, mode, total)
