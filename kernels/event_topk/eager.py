"""Event top-k in plain torch: two stable sorts, no wait for the device.

Shape suffixes: N tokens, E events.
"""

from __future__ import annotations

import torch
from torch import Tensor


def event_topk(score_N: Tensor, event_N: Tensor, count_E: Tensor, total: int) -> Tensor:
    """See the package."""
    N = score_N.shape[0]
    token_N = torch.arange(N, device=score_N.device)
    # Adding zero turns -0.0 into 0.0; a radix sort would order them.
    by_score = torch.argsort(score_N + 0.0, descending=True, stable=True)
    order_N = by_score[torch.argsort(event_N[by_score], stable=True)]
    # Events are contiguous, so the sorted tokens of an event lie in the event's own places.
    number_E = torch.arange(count_E.shape[0], device=score_N.device)
    end_E = torch.searchsorted(event_N, number_E) + count_E
    kept_N = torch.zeros_like(event_N)
    kept_N[order_N] = (token_N < end_E[event_N]).long()
    place_N = (kept_N.cumsum(0) - 1).clamp_(max=total)
    # One extra place receives the dropped tokens, so that the host knows all sizes.
    kept = token_N.new_zeros(total + 1)
    kept.index_copy_(0, torch.where(kept_N == 1, place_N, total), token_N)
    return kept[:total]
