"""Frames made coarser in the encoder: a chunk's features at every stride, as many as pooling makes.

A frame's stride is known when all frames are seen, so each chunk is reduced at all strides and its
own features are freed.

Shape suffixes: T frames of a chunk, P features, K kept features of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.kernels.adaptive_pool import pool_frames
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.selecting import best_of_frames


def reduce_frames(
    x_TPD: Tensor,
    video: VideoLayout,
    strides: Sequence[int],
    reduction: str,
    width: int | None = None,
) -> list[tuple[Tensor, Tensor | None]]:
    """For each stride, features [T, K, D] with K = `video.frame_features(stride)`.

    `pool` averages them and gives no places. `select` keeps K of the frame's dense features (those
    at the dense stride) and gives their places in that grid, int64 [T, K]; only the first `width`
    of the D features are looked at.
    """
    if reduction == POOL:
        return [(_pooled(x_TPD, video, stride), None) for stride in strides]
    assert reduction == SELECT, reduction
    dense_TPD = _pooled(x_TPD, video, video.dense_stride)
    counts = [video.frame_features(stride) for stride in strides]
    return [(kept_TKD, place_TK) for place_TK, kept_TKD in best_of_frames(dense_TPD, counts, width)]


def _pooled(x_TPD: Tensor, video: VideoLayout, stride: int) -> Tensor:
    step = video.feature_stride(stride)
    return x_TPD if step == 1 else pool_frames(x_TPD, video.grid, step, video.pooling)
