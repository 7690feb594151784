"""Ground truth for attention mass: one head and one row at a time, in float64.

Shape suffixes as in the package.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    heads, kv_heads = q_QHD.shape[1], k_NGD.shape[1]
    mass_N = torch.zeros(k_NGD.shape[0], dtype=torch.float64)
    first_query = first_key = 0
    for queries, keys in zip(query_lens, key_lens, strict=True):
        for i in range(queries):
            visible = slice(first_key, first_key + keys - queries + i + 1)
            for h in range(heads):
                k = k_NGD[visible, h // (heads // kv_heads)].double()
                logits = scale * (k @ q_QHD[first_query + i, h].double())
                mass_N[visible] += logits.softmax(0) / (heads * queries)
        first_query += queries
        first_key += keys
    return mass_N
