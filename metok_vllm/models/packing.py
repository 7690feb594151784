"""The tokens of a video in the order of its layout: pooled frames and newlines.

Shape suffixes: T frames, P patches, D features, N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.events import EventMap
from metok_vllm.kernels.adaptive_pool import adaptive_pool, pack_index, pool_frames
from metok_vllm.plan.layout import VideoLayout


def pack(
    x_TPD: Tensor,
    events: EventMap,
    newline_D: Tensor | None,
    config: METokConfig,
    video: VideoLayout,
) -> Tensor:
    """Tokens [N1, D] of stage 1 from all patches, each frame pooled at its own stride only."""
    fine, medium, coarse = map(video.feature_stride, config.strides)
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
    )
    return tokens_ND


def packed_index(
    events: EventMap, config: METokConfig, video: VideoLayout
) -> tuple[Tensor, Tensor]:
    """Row and event of each of stage 1's tokens, int64 [N1] each.

    Rows address [all frames at each stride in turn | newline].
    """
    return pack_index(
        events.class_T,
        events.event_T,
        [video.pooled(stride) for stride in config.strides],
        video.encoded_tokens(config),
        closes_events=video.closes_events,
        row_newline=video.row_newline,
    )


def dense_index(video: VideoLayout, device: torch.device) -> Tensor:
    """Row of each token of the model's own input, int64 [N0], in [all frames | newline]."""
    alike_T = torch.zeros(video.frames, dtype=torch.int64, device=device)
    row_N, _ = pack_index(
        alike_T,
        alike_T,
        [video.pooled(video.dense_stride), (0, 0), (0, 0)],
        video.dense_tokens(),
        closes_events=video.closes_events,
        row_newline=video.row_newline,
    )
    return row_N


def dense_tokens(x_TPD: Tensor, newline_D: Tensor | None, video: VideoLayout) -> Tensor:
    """The model's own input [N0, D] from all patches."""
    step = video.feature_stride(video.dense_stride)
    pooled_TPD = pool_frames(x_TPD, video.grid, step, video.pooling)
    rows_ND = with_newline(pooled_TPD.flatten(0, 1), newline_D)
    return rows_ND.index_select(0, dense_index(video, x_TPD.device))


def with_newline(rows_ND: Tensor, newline_D: Tensor | None) -> Tensor:
    """Rows with the newline after them, for models that have one."""
    if newline_D is None:
        return rows_ND
    return torch.cat([rows_ND, newline_D[None].to(rows_ND.dtype)])
