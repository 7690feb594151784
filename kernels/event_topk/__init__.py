"""Event top-k: the best-scored tokens inside every event, as sorted indices.

Each event keeps a given number of tokens: the highest scores first, ties to the earlier token.
Events of several videos and requests follow one another.

Shape suffixes: N tokens, E events.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metok_vllm.kernels.backend import FLOATS, implementation_for, require
from metok_vllm.kernels.event_topk import eager

__all__ = ["event_topk"]


def event_topk(score_N: Tensor, event_N: Tensor, count_E: Tensor, total: int) -> Tensor:
    """Kept tokens in rising order, int64 [total].

    `event_N` (int64) is non-decreasing in [0, E); `count_E` (int64) says how many tokens of each
    event to keep: at most its size, `total` in all. Both stay on the device and are not checked:
    counts that do not add up to `total` give meaningless rows, still in [0, N). Scores are finite;
    -0.0 equals 0.0. Raises ValueError for shapes or dtypes that do not fit together.
    """
    require(
        score_N.ndim == event_N.ndim == count_E.ndim == 1
        and score_N.shape == event_N.shape
        and score_N.dtype in FLOATS
        and event_N.dtype == count_E.dtype == torch.int64
        and score_N.device == event_N.device == count_E.device
        and 0 <= total <= score_N.shape[0],
        f"float scores [N], int64 events [N] and counts [E] on one device, 0 <= {total} <= N",
        scores=score_N,
        events=event_N,
        counts=count_E,
    )
    if implementation_for(score_N) == "triton":
        from metok_vllm.kernels.event_topk import triton

        return triton.event_topk(score_N, event_N, count_E, total)
    return eager.event_topk(score_N, event_N, count_E, total)
