"""Where each packed token comes from: rows of all pooled frames, of a newline and of separators.

Separators are rows in front of and behind each frame's features, such as the timestamps of
Qwen3-VL. Their numbers differ from frame to frame; their sum is known to the caller.

Shape suffixes: T frames, N packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pack_index(
    class_T: Tensor,
    event_T: Tensor,
    sides_of_class: Sequence[tuple[int, int]],
    total: int,
    *,
    closes_events: bool = True,
    row_newline: bool = False,
    head_T: Tensor | None = None,
    tail_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Row of each packed token, and its event: two int64 tensors of length `total`.

    Rows address the concatenation [all frames fine | all medium | all coarse | newline |
    separators]; `sides_of_class` are the rows and columns of a pooled frame of each class. The
    newline is there if `closes_events` or `row_newline`. Separators are in the order of frames, the
    head of a frame before its tail; `head_T` and `tail_T` (int64) count them, None for none. They
    belong to the event of their frame, and `closes_events` excludes them. `total` is known from the
    budget, so nothing here waits for the device.
    """
    T = class_T.shape[0]
    device = class_T.device
    fine, medium, coarse = (height * width for height, width in sides_of_class)
    newline = T * (fine + medium + coarse)
    has_separators = head_T is not None or tail_T is not None
    assert not (closes_events and has_separators), "no layout has newlines and separators"
    # The tokens of a frame beside its features and the newlines of its rows.
    other_T = torch.zeros_like(event_T)
    if closes_events:
        other_T[-1:] = 1
        other_T[:-1] = event_T[1:] - event_T[:-1]
    for count_T in (head_T, tail_T):
        if count_T is not None:
            other_T = other_T + count_T
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
    end_T = (length_T + other_T).cumsum(0)
    position_N = torch.arange(total, device=device)
    frame_N = torch.searchsorted(end_T, position_N, right=True).clamp_(max=T - 1)
    within_N = position_N - (end_T - length_T - other_T)[frame_N]
    first_T = first_of_class_T + torch.arange(T, device=device) * pooled_T
    length_N = length_T[frame_N]
    # The place after the frame's head, negative in it.
    place_N = within_N if head_T is None else within_N - head_T[frame_N]
    feature_N, is_feature_N = place_N, place_N < length_N
    if row_newline:
        width_N = of_class(width0, width1, width2)[frame_N]
        line_N, column_N = place_N // (width_N + 1), place_N % (width_N + 1)
        feature_N = line_N * width_N + column_N
        is_feature_N = is_feature_N & (column_N < width_N)
    row_N = torch.where(is_feature_N, first_T[frame_N] + feature_N, newline)
    if has_separators:
        first = first_separator(T, sides_of_class, row_newline)
        before_T = other_T.cumsum(0) - other_T
        # A frame's tail follows its head, as if there were no features between them.
        own_N = torch.where(place_N < 0, within_N, within_N - length_N)
        is_separator_N = (place_N < 0) | (place_N >= length_N)
        row_N = torch.where(is_separator_N, first + before_T[frame_N] + own_N, row_N)
    return row_N, event_T[frame_N]


def first_separator(
    frames: int, sides_of_class: Sequence[tuple[int, int]], has_newline: bool
) -> int:
    """The first row of separators in the addresses of `pack_index`; rows from it on are theirs."""
    return frames * sum(height * width for height, width in sides_of_class) + has_newline


def separator_mask(
    row_N: Tensor,
    frames: int,
    sides_of_class: Sequence[tuple[int, int]],
    *,
    closes_events: bool = True,
    row_newline: bool = False,
) -> Tensor:
    """Which of the tokens of `pack_index` are separators, bool [N], from their rows."""
    return row_N >= first_separator(frames, sides_of_class, closes_events or row_newline)
