"""The tokens of a video in the order of its layout: pooled frames, newlines and separators.

Shape suffixes: T frames, P patches, D features, S separators, N tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.devices import array_on, tensor_on
from metok_vllm.events import EventMap
from metok_vllm.kernels.adaptive_pool import (
    adaptive_pool,
    pack_index,
    pool_frames,
    separator_mask,
)
from metok_vllm.models.positions import VideoPositions
from metok_vllm.plan.cells import cell_centres
from metok_vllm.plan.layout import VideoLayout


def pack(
    x_TPD: Tensor,
    events: EventMap,
    newline_D: Tensor | None,
    config: METokConfig,
    video: VideoLayout,
    separator_SD: Tensor | None = None,
) -> Tensor:
    """Tokens [N1, D] of stage 1 from all patches, each frame pooled at its own stride only."""
    fine, medium, coarse = map(video.feature_stride, config.strides)
    head_T, tail_T = _separators(video, x_TPD.device)
    tokens_ND, _ = adaptive_pool(
        x_TPD,
        events.class_T,
        events.event_T,
        None if newline_D is None else newline_D.to(x_TPD.dtype),
        video.grid,
        (fine, medium, coarse),
        video.pooling,
        video.encoded_tokens(config),
        closes_events=video.closes_events,
        row_newline=video.row_newline,
        separator_SD=separator_SD,
        head_T=head_T,
        tail_T=tail_T,
    )
    return tokens_ND


def packed_index(
    events: EventMap, config: METokConfig, video: VideoLayout
) -> tuple[Tensor, Tensor]:
    """Row and event of each of stage 1's tokens, int64 [N1] each.

    Rows address [all frames at each stride in turn | newline or separators].
    """
    head_T, tail_T = _separators(video, events.class_T.device)
    return pack_index(
        events.class_T,
        events.event_T,
        [video.pooled(stride) for stride in config.strides],
        video.encoded_tokens(config),
        closes_events=video.closes_events,
        row_newline=video.row_newline,
        head_T=head_T,
        tail_T=tail_T,
    )


def dense_index(video: VideoLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and frame of each token of the model's own input, int64 [N0] each.

    Rows address [all frames | newline or separators].
    """
    alike_T = torch.zeros(video.frames, dtype=torch.int64, device=device)
    frame_T = torch.arange(video.frames, device=device)
    head_T, tail_T = _separators(video, device)
    row_N, frame_N = pack_index(
        alike_T,
        frame_T,
        [video.pooled(video.dense_stride), (0, 0), (0, 0)],
        video.dense_tokens() - video.closes_events,
        closes_events=False,
        row_newline=video.row_newline,
        head_T=head_T,
        tail_T=tail_T,
    )
    if video.closes_events:  # one newline behind the last frame
        newline = video.frames * video.frame_features(video.dense_stride)
        row_N = torch.cat([row_N, torch.full_like(row_N[:1], newline)])
        frame_N = torch.cat([frame_N, frame_T[-1:]])
    return row_N, frame_N


def separator_rows(row_N: Tensor, strides: Sequence[int], video: VideoLayout) -> Tensor | None:
    """Which of these rows are separators, bool [N]; None for layouts without any."""
    if not video.separators:
        return None
    sides = [video.pooled(stride) for stride in strides]
    return separator_mask(
        row_N,
        video.frames,
        sides,
        closes_events=video.closes_events,
        row_newline=video.row_newline,
    )


def offset_rows(
    positions: VideoPositions,
    strides: Sequence[int],
    video: VideoLayout,
    device: torch.device,
    places: Mapping[int, Sequence[Tensor]],
) -> Tensor:
    """Distances [R, 3] of all rows [all frames at each stride in turn | separators].

    A pooled feature stands at its cell's centre, a selected one at its own place: `places` has
    those of each chunk of frames, int64 [T, K], by stride.
    """
    feature_TP3 = array_on(positions.feature_TP3.numpy(), device)
    parts = []
    for stride in strides:
        if stride in places:
            place_TK = torch.cat(list(places[stride]))
            place_TK3 = place_TK[..., None].expand(*place_TK.shape, feature_TP3.shape[-1])
            parts.append(feature_TP3.gather(1, place_TK3).flatten(0, 1))
        else:
            centres = cell_centres(*video.grid, video.feature_stride(stride))
            parts.append(feature_TP3[:, tensor_on(centres, device)].flatten(0, 1))
    return torch.cat([*parts, array_on(positions.separator_S3.numpy(), device)])


def dense_tokens(x_TPD: Tensor, newline_D: Tensor | None, video: VideoLayout) -> Tensor:
    """The model's own input [N0, D] from all patches."""
    step = video.feature_stride(video.dense_stride)
    pooled_TPD = pool_frames(x_TPD, video.grid, step, video.pooling)
    rows_ND = with_rows(pooled_TPD.flatten(0, 1), newline_D)
    return rows_ND.index_select(0, dense_index(video, x_TPD.device)[0])


def with_rows(
    rows_ND: Tensor, newline_D: Tensor | None, separator_SD: Tensor | None = None
) -> Tensor:
    """Rows of frames with the newline or the separators of a model after them."""
    more = [] if newline_D is None else [newline_D[None]]
    if separator_SD is not None:
        more.append(separator_SD)
    return torch.cat([rows_ND, *(rows.to(rows_ND.dtype) for rows in more)]) if more else rows_ND


def interleaved(index_N: Tensor, video: VideoLayout) -> Tensor:
    """Rows [N + S] of selected dense features, rising, with the separators of all frames.

    Rows address [all frames | separators].
    """
    head_T, tail_T = _separators(video, index_N.device)
    if head_T is None or tail_T is None:
        return index_N
    size = video.frame_features(video.dense_stride)
    frame_N = index_N // size
    around_T = head_T + tail_T
    before_T = around_T.cumsum(0) - around_T  # separators in front of a frame
    kept_T = torch.zeros_like(around_T).index_add_(0, frame_N, torch.ones_like(frame_N))
    earlier_T = kept_T.cumsum(0) - kept_T  # features in front of a frame
    place_N = torch.arange(len(index_N), device=index_N.device)
    place_N = place_N + (before_T + head_T)[frame_N]
    place_S = torch.arange(video.separators, device=index_N.device)
    frame_S = torch.searchsorted(around_T.cumsum(0), place_S, right=True)
    behind_S = place_S - before_T[frame_S] >= head_T[frame_S]
    place_S = place_S + earlier_T[frame_S] + kept_T[frame_S] * behind_S
    row_N = torch.empty(len(index_N) + video.separators, dtype=torch.int64, device=index_N.device)
    row_N[place_N] = index_N
    row_N[place_S] = torch.arange(video.separators, device=index_N.device) + video.frames * size
    return row_N


def _separators(video: VideoLayout, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of separators in front of and behind each frame, int64 [T]; None without any."""
    if not video.separators:
        return None, None
    return (
        tensor_on(tuple(map(len, video.before)), device),
        tensor_on(tuple(map(len, video.after)), device),
    )
