"""Attention mass in plain torch: matrix products over blocks of query rows.

Shape suffixes as in the package; R rows of one KV head in one block: heads times queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOGITS = 4 << 20  # float32 numbers held at a time, 16 MB; on a CPU more was hardly faster


def attention_mass(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Tensor:
    """See the package. Holds K in float32 and `MAX_LOGITS` logits (at least one row's)."""
    mass_N = torch.zeros(k_NGD.shape[0], dtype=torch.float32, device=k_NGD.device)
    first_query = first_key = 0
    for queries, keys in zip(query_lens, key_lens, strict=True):
        rows = slice(first_query, first_query + queries)
        columns = slice(first_key, first_key + keys)
        if queries:
            _add_request(mass_N[columns], q_QHD[rows], k_NGD[columns], scale)
        first_query += queries
        first_key += keys
    return mass_N


def _add_request(mass_N: Tensor, q_QHD: Tensor, k_NGD: Tensor, scale: float) -> None:
    queries, heads = q_QHD.shape[:2]
    keys, kv_heads = k_NGD.shape[:2]
    group = heads // kv_heads
    share = 1 / (heads * queries)
    block = max(1, MAX_LOGITS // (group * keys))
    for g in range(kv_heads):
        own = slice(g * group, (g + 1) * group)
        k_DN = k_NGD[:, g].float().T
        for start in range(0, queries, block):
            q_BHD = q_QHD[start : start + block, own].float() * scale
            logits_RN = q_BHD.flatten(0, 1) @ k_DN
            # Only the last `queries` keys can lie ahead of a row.
            ahead = torch.ones(len(q_BHD), queries, dtype=torch.bool, device=mass_N.device)
            ahead = ahead.triu_(start + 1).repeat_interleave(group, 0)
            logits_RN[:, keys - queries :].masked_fill_(ahead, -torch.inf)
            mass_N.add_(torch.softmax(logits_RN, dim=1).sum(0), alpha=share)
