"""Ground truth for event top-k: one event at a time, a Python sort."""

from __future__ import annotations

import torch
from torch import Tensor


def event_topk(score_N: Tensor, event_N: Tensor, count_E: Tensor, total: int) -> Tensor:
    """Kept tokens in rising order, int64 [total]. See the package for the contract."""
    scores, events = score_N.double().tolist(), event_N.tolist()
    kept: list[int] = []
    for event, count in enumerate(count_E.tolist()):
        tokens = [n for n in range(len(events)) if events[n] == event]
        kept += sorted(tokens, key=lambda n: (-scores[n], n))[:count]
    assert len(kept) == total
    return torch.tensor(sorted(kept), dtype=torch.int64)
