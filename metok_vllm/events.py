"""Stage 1, the rule: events of a video, key events, and the pooling stride of each frame.

Everything runs on the features' device in operations of fixed size, without a host sync. Change
the key-event rule here and run `pytest tests/test_events.py`.
Source: METok, arXiv 2506.02850, section 3.1; budgeted as docs/metok.md defines.

Shape suffixes: T frames, D features, E events.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.devices import tensor_on
from metok_vllm.plan.tokens import FrameBudget, frame_budget, key_event_count, key_frame_count

FINE, MEDIUM, COARSE = 0, 1, 2


@dataclass(frozen=True)
class EventMap:
    """Events and stride classes of one video, on the device of its features."""

    event_T: Tensor  # int64, event of each frame, rising from 0
    relevance_T: Tensor  # float32
    natural_T: Tensor  # int64, stride class by the paper's rule
    class_T: Tensor  # int64, stride class under the budget: 0 fine, 1 medium, 2 coarse
    key_E: Tensor  # bool
    event_relevance_E: Tensor  # float32


def analyse(feature_TD: Tensor, relevance_T: Tensor | None, config: METokConfig) -> EventMap:
    """Events, key events and stride classes of one video.

    `feature_TD` is the mean over the patches of each frame; `relevance_T` the cosine of frame and
    query. None without alignment towers: a frame's distance from its event's mean is used.
    """
    T = feature_TD.shape[0]
    event_T = segment(adjacent_cosine(feature_TD), config.num_events)
    if relevance_T is None:
        relevance_T = event_deviation(feature_TD, event_T)
    relevance_T = relevance_T.float()
    K = min(config.num_events, T)
    event_relevance_E = event_maximum(event_T, relevance_T, K)
    key_E = key_events(event_relevance_E, config.key_event_ratio)
    natural_T = natural_classes(event_T, relevance_T, key_E, config.key_frames_per_event)
    budget = frame_budget(T, K, config.key_event_ratio, config.key_frames_per_event)
    class_T = budgeted_classes(natural_T, relevance_T, budget)
    return EventMap(event_T, relevance_T, natural_T, class_T, key_E, event_relevance_E)


def adjacent_cosine(feature_TD: Tensor) -> Tensor:
    """c_t = cos(f_t, f_t+1), float32 of length T - 1."""
    f = feature_TD.float()
    return F.cosine_similarity(f[:-1], f[1:], dim=-1)


def segment(cosine: Tensor, num_events: int) -> Tensor:
    """Event of each frame [T], cutting after the K - 1 least similar neighbours (ties: earlier)."""
    K = min(num_events, cosine.shape[0] + 1)
    after = torch.argsort(cosine, stable=True)[: K - 1]
    begins = torch.zeros(cosine.shape[0] + 1, dtype=torch.int64, device=cosine.device)
    begins[after + 1] = 1
    return begins.cumsum(0)


def event_deviation(feature_TD: Tensor, event_T: Tensor) -> Tensor:
    """Relevance without a query: 1 - cos(frame, mean of its event), float32 [T].

    Rounded to six decimals, so that equal frames tie whatever the order of summation.
    """
    f = feature_TD.double()
    # T rows hold any number of events without asking the device how many there are.
    total = torch.zeros_like(f).index_add_(0, event_T, f)
    return (1 - F.cosine_similarity(f, total[event_T], dim=-1)).round(decimals=6).float()


def budgeted_classes(class_T: Tensor, relevance_T: Tensor, budget: FrameBudget) -> Tensor:
    """Stride class of each frame under the budget, by natural class, relevance, then time."""
    by_relevance = torch.argsort(relevance_T, descending=True, stable=True)
    order = by_relevance[torch.argsort(class_T[by_relevance], stable=True)]
    result = torch.full_like(class_T, COARSE)
    result[order[: budget.fine + budget.medium]] = MEDIUM
    result[order[: budget.fine]] = FINE
    return result


def event_maximum(event_T: Tensor, relevance_T: Tensor, num_events: int) -> Tensor:
    """Relevance of each event [E]: the largest of its frames."""
    lowest = torch.full(
        (num_events,), -torch.inf, dtype=relevance_T.dtype, device=relevance_T.device
    )
    return lowest.scatter_reduce(0, event_T, relevance_T, reduce="amax")


def key_events(event_relevance_E: Tensor, ratio: float) -> Tensor:
    """Whether each event is a key event, bool [E]: the ceil(ratio * E) most relevant ones."""
    count = key_event_count(event_relevance_E.shape[0], ratio)
    order = torch.argsort(event_relevance_E, descending=True, stable=True)
    key_E = torch.zeros_like(event_relevance_E, dtype=torch.bool)
    key_E[order[:count]] = True
    return key_E


def natural_classes(
    event_T: Tensor, relevance_T: Tensor, key_E: Tensor, key_frames_per_event: int | float
) -> Tensor:
    """Stride class of each frame [T] by the paper's rule, before any budget."""
    T = event_T.shape[0]
    by_relevance = torch.argsort(relevance_T, descending=True, stable=True)
    order = by_relevance[torch.argsort(event_T[by_relevance], stable=True)]
    length_E = torch.zeros_like(key_E, dtype=torch.int64).index_add_(
        0, event_T, torch.ones_like(event_T)
    )
    first_E = length_E.cumsum(0) - length_E
    rank_T = torch.empty_like(event_T)
    rank_T[order] = torch.arange(T, device=event_T.device) - first_E[event_T[order]]
    key_frame_T = rank_T < _key_frames(length_E, key_frames_per_event, T)[event_T]
    return torch.where(key_E[event_T], MEDIUM, COARSE) - key_frame_T.long()


def _key_frames(length_E: Tensor, key_frames_per_event: int | float, num_frames: int) -> Tensor:
    if isinstance(key_frames_per_event, int):
        return torch.full_like(length_E, min(key_frames_per_event, num_frames))
    # Exact ceilings come from a table over all possible lengths; float products would round.
    table = [key_frame_count(n, key_frames_per_event) for n in range(num_frames + 1)]
    return tensor_on(table, length_E.device)[length_E]
