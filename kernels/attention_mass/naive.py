"""Ground truth for attention mass: one head and one row at a time, in float64.

Shape suffixes as in the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def attention_mass(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Tensor:
    """Mean probability of each key, float64 [N]. See the package for the contract."""
    mass_N = torch.zeros(k_NGD.shape[0], dtype=torch.float64)
    count_N = torch.zeros(k_NGD.shape[0], dtype=torch.float64)
    for _, _, visible, whole, logits in _rows(q_QHD, k_NGD, query_lens, key_lens, scale):
        mass_N[visible] += logits.softmax(0)
        count_N[whole] += 1
    return mass_N / count_N.clamp(min=1)


def log_sum_exp(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Tensor:
    """Log-sum-exp of each row's scaled logits, float64 [Q, H]."""
    lse_QH = torch.empty(q_QHD.shape[:2], dtype=torch.float64)
    for query, head, _, _, logits in _rows(q_QHD, k_NGD, query_lens, key_lens, scale):
        lse_QH[query, head] = logits.logsumexp(0)
    return lse_QH


def _rows(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Iterator[tuple[int, int, slice, slice, Tensor]]:
    """Query, head, the keys it sees, the keys of its request, logits of those it sees."""
    heads, kv_heads = q_QHD.shape[1], k_NGD.shape[1]
    first_query = first_key = 0
    for queries, keys in zip(query_lens, key_lens, strict=True):
        whole = slice(first_key, first_key + keys)
        for i in range(queries):
            visible = slice(first_key, first_key + keys - queries + i + 1)
            for h in range(heads):
                k = k_NGD[visible, h // (heads // kv_heads)].double()
                logits = scale * (k @ q_QHD[first_query + i, h].double())
                yield first_query + i, h, visible, whole, logits
        first_query += queries
        first_key += keys
