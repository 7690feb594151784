"""Adaptive pooling: frames with stride classes to one packed token sequence.

For frame t of class c with stride s, its rows x columns of patches are pooled: each side to
ceil(side/s) (bilinear, area) or floor(side/s) (average). A newline token may follow the last frame
of each event (LLaVA-OneVision) or each pooled row (LLaVA-Video). Separator rows may stand in front
of and behind each frame (Qwen3-VL's timestamps).

Shape suffixes: T frames, P patches of a frame, D features, S separators, N packed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metok_vllm.kernels.adaptive_pool import packed
from metok_vllm.kernels.adaptive_pool.index import pack_index, separator_mask
from metok_vllm.kernels.adaptive_pool.packed import (
    MODES,
    Grid,
    pool_frames,
    pooled_sides,
    sides_of,
)
from metok_vllm.kernels.backend import implementation_for, require

__all__ = ["adaptive_pool", "pack_index", "pool_frames", "pooled_sides", "separator_mask"]


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor | None,
    grid: Grid,
    strides: tuple[int, int, int],
    mode: str = "bilinear",
    total: int | None = None,
    *,
    closes_events: bool = True,
    row_newline: bool = False,
    separator_SD: Tensor | None = None,
    head_T: Tensor | None = None,
    tail_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Frames at the stride of their class, in time order, with newlines and separators.

    `grid` is the patches of a frame: rows and columns, or one number for both. A newline follows
    each event where `closes_events` is set and each row where `row_newline` is; without either,
    `newline_D` is None. `separator_SD` are the separators in order: the `head_T[t]` rows in front
    of frame t, then the `tail_T[t]` rows behind it (int64 counts that add up to S, None for none).

    `class_T` (int64) holds 0, 1 or 2, `event_T` (int64) rises from 0 in steps of one. Returns
    tokens [N, D] and the event of each token, int64 [N]. `total` is N where the caller knows it;
    otherwise it is read from the classes, which waits for the device. Raises ValueError for
    shapes, dtypes or a mode outside this contract, and for separators with `closes_events`.
    """
    if mode not in MODES:
        raise ValueError(f"pooling mode must be one of {MODES}, got {mode!r}")
    rows, columns = sides_of(grid)
    require(
        x_TPD.ndim == 3 and x_TPD.shape[1] == rows * columns and x_TPD.is_floating_point(),
        f"float features [T, {rows}x{columns}, D]",
        features=x_TPD,
    )
    T, _, D = x_TPD.shape
    require(
        class_T.shape == event_T.shape == (T,)
        and class_T.dtype == event_T.dtype == torch.int64
        and x_TPD.device == class_T.device == event_T.device,
        f"int64 classes and events [{T}] beside the features",
        classes=class_T,
        events=event_T,
    )
    if newline_D is None:
        if closes_events or row_newline:
            raise ValueError("a newline [D] is needed after events or rows")
    else:
        require(
            newline_D.shape == (D,) and newline_D.device == x_TPD.device,
            f"a newline [{D}] beside the features",
            newline=newline_D,
        )
    if separator_SD is None:
        if head_T is not None or tail_T is not None:
            raise ValueError("separators [S, D] are needed with head_T or tail_T")
    else:
        if closes_events:
            raise ValueError("separators need closes_events=False, got True")
        require(
            separator_SD.ndim == 2
            and separator_SD.shape[1] == D
            and separator_SD.device == x_TPD.device,
            f"separators [S, {D}] beside the features",
            separators=separator_SD,
        )
        head_T = torch.zeros_like(event_T) if head_T is None else head_T
        tail_T = torch.zeros_like(event_T) if tail_T is None else tail_T
        require(
            head_T.shape == tail_T.shape == (T,)
            and head_T.dtype == tail_T.dtype == torch.int64
            and head_T.device == tail_T.device == x_TPD.device,
            f"int64 numbers of separators [{T}] beside the features",
            head=head_T,
            tail=tail_T,
        )
    if T == 0:
        return x_TPD.new_empty(0, D), event_T
    if total is None:
        sides = [pooled_sides(grid, stride, mode) for stride in strides]
        sizes = [height * (width + row_newline) for height, width in sides]
        size_C = torch.tensor(sizes, device=class_T.device)
        total = int(size_C[class_T].sum() + (event_T[-1] + 1) * closes_events)
        total += 0 if separator_SD is None else len(separator_SD)
    how = (grid, strides, mode, total, closes_events, row_newline, separator_SD, head_T, tail_T)
    if implementation_for(x_TPD) == "triton":
        from metok_vllm.kernels.adaptive_pool import triton

        return triton.adaptive_pool(x_TPD, class_T, event_T, newline_D, *how)
    return packed.adaptive_pool(x_TPD, class_T, event_T, newline_D, *how)
