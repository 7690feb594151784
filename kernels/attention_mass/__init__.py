"""Attention mass: how much of the text's attention each key receives, for packed requests.

mass[n] = mean over heads h and query rows i of softmax(scale * q[i, h] . k[:, g(h)])[n]

The query rows of a request are the last rows of its sequence, under a causal mask. Only these rows
are scored: no n x n matrix is built.

Shape suffixes: Q query rows and N keys of all requests, H query heads, G KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metok_vllm.kernels.attention_mass import eager
from metok_vllm.kernels.backend import FLOATS, implementation_for, require

__all__ = ["attention_mass"]


def attention_mass(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Tensor:
    """Mean probability of each key over heads and query rows of its request, float32 [N].

    Request r has the next `key_lens[r]` keys; its queries are the last `query_lens[r]` of those
    rows, so query i of n_q sees keys 0 .. n_k - n_q + i. Query head h reads KV head h // (H // G).
    Over a request's keys the result sums to 1; without queries it is 0. Raises ValueError for
    shapes, dtypes or lengths that do not fit together.
    """
    _check(q_QHD, k_NGD, query_lens, key_lens)
    if implementation_for(q_QHD) == "triton":
        from metok_vllm.kernels.attention_mass import triton

        return triton.attention_mass(q_QHD, k_NGD, query_lens, key_lens, scale)
    return eager.attention_mass(q_QHD, k_NGD, query_lens, key_lens, scale)


def _check(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
) -> None:
    require(
        q_QHD.ndim == 3
        and k_NGD.ndim == 3
        and q_QHD.shape[2] == k_NGD.shape[2]
        and k_NGD.shape[1] > 0
        and q_QHD.shape[1] % k_NGD.shape[1] == 0
        and q_QHD.dtype == k_NGD.dtype
        and q_QHD.dtype in FLOATS
        and q_QHD.device == k_NGD.device,
        "queries [Q, H, D] and keys [N, G, D] of one float type and device, H a multiple of G",
        queries=q_QHD,
        keys=k_NGD,
    )
    if len(query_lens) != len(key_lens) or any(
        not 0 <= queries <= keys for queries, keys in zip(query_lens, key_lens, strict=False)
    ):
        raise ValueError(
            "every request needs 0 <= queries <= keys; "
            f"got query_lens {list(query_lens)}, key_lens {list(key_lens)}"
        )
    require(
        sum(query_lens) == q_QHD.shape[0] and sum(key_lens) == k_NGD.shape[0],
        f"{sum(query_lens)} queries and {sum(key_lens)} keys as the lengths say",
        queries=q_QHD,
        keys=k_NGD,
    )
