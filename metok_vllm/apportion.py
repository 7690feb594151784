"""Whole tokens shared out over events or frames, with an exact total.

Shape suffixes: E events (or frames).
"""

from __future__ import annotations

import torch
from torch import Tensor


def share_out(total: int | Tensor, size_E: Tensor, weight_E: Tensor, relevance_E: Tensor) -> Tensor:
    """Tokens that each event keeps, int64 [E], `total` in all.

    In proportion to weight times size with the largest-remainder rule (ties: the earlier event),
    capped at the size; what is left over goes to the most relevant events first. Whole numbers
    throughout, so the result is exact.
    """
    quota_E = weight_E * size_E
    whole = quota_E.sum()
    divisor = whole.clamp(min=1)
    count_E = total * quota_E // divisor
    remainder_E = total * quota_E % divisor
    missing = torch.where(whole > 0, total - count_E.sum(), 0)
    count_E = count_E + (_rank(remainder_E) < missing)
    count_E = torch.minimum(count_E, size_E)
    left = total - count_E.sum()
    spare_E = size_E - count_E
    order = torch.argsort(relevance_E, descending=True, stable=True)
    sorted_spare_E = spare_E[order]
    before_E = sorted_spare_E.cumsum(0) - sorted_spare_E
    extra_E = torch.minimum((left - before_E).clamp(min=0), sorted_spare_E)
    return count_E.index_add(0, order, extra_E)


def _rank(value_E: Tensor) -> Tensor:
    order = torch.argsort(value_E, descending=True, stable=True)
    rank_E = torch.empty_like(order)
    rank_E[order] = torch.arange(len(order), device=order.device)
    return rank_E
