"""Attention mass in Triton: two passes over the keys.

Pass 1 gives each row's log-sum-exp over a slice of the keys, pass 2 sums the probabilities of a
block of keys over all rows. Rows are (query, head of one group) pairs, so a tile of K is read once
for all query heads that share it. Sums run in a fixed order: equal inputs give equal bits.

Floor of one call with N keys, Q text rows a request, H heads, G KV heads, D wide, b bytes a number:
    bytes  N*G*D*b of keys + Q*H*D*b of queries + 4*N of results
    FLOPs  4*Q*H*N*D
Pass 1 reads K once per block of `ROWS` rows; later blocks find it in the L2 cache.

The log-sum-exp over running maxima is that of FlashAttention (arXiv 2205.14135).
Shape suffixes as in the package; R rows of a tile, N keys of a tile, S slices of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from metok_vllm.kernels.attention_mass.tiles import (
    dot,
    load_keys,
    load_request,
    load_rows,
    lse_offset,
    tile_sizes,
)
from metok_vllm.kernels.backend import describe, interpreted
from metok_vllm.kernels.jit import jit

LOG2_E = tl.constexpr(1.4426950408889634)
SLICE = 1024  # keys of one program in pass 1: small enough that one long request fills the GPU
MAX_HEAD_SIZE = 256


def attention_mass(
    q_QHD: Tensor,
    k_NGD: Tensor,
    query_lens: Sequence[int],
    key_lens: Sequence[int],
    scale: float,
) -> Tensor:
    """See the package. Head sizes up to 256 (ValueError beyond); does not wait for the device."""
    queries, heads, size = q_QHD.shape
    keys, kv_heads = k_NGD.shape[:2]
    if size > MAX_HEAD_SIZE:
        raise ValueError(f"head size {MAX_HEAD_SIZE} is the largest; {describe('queries', q_QHD)}")
    mass_N = torch.empty(keys, dtype=torch.float32, device=k_NGD.device)
    if keys == 0:
        return mass_N
    q_QHD, k_NGD = _inner_contiguous(q_QHD), _inner_contiguous(k_NGD)
    requests = _request_table(query_lens, key_lens, q_QHD.device)
    # Inside a request, queries are addressed with 32 bits.
    assert max(query_lens) * q_QHD.stride(0) < 2**31
    group = heads // kv_heads
    tiles = tile_sizes(q_QHD.dtype, size)
    common = {
        "KV_HEADS": kv_heads,
        "GROUP": group,
        "D": size,
        "WIDEN": q_QHD.dtype == torch.bfloat16 and interpreted(),
        **tiles,
    }
    slices = triton.cdiv(max(key_lens), SLICE)
    lse_SQH = q_QHD.new_empty(slices, queries, heads, dtype=torch.float32)
    row_blocks = triton.cdiv(max(query_lens) * group, tiles["ROWS"])
    if queries:
        slice_lse_kernel[(slices * kv_heads, row_blocks, len(key_lens))](
            q_QHD,
            k_NGD,
            lse_SQH,
            requests,
            scale,
            queries,
            q_QHD.stride(0),
            q_QHD.stride(1),
            k_NGD.stride(0),
            k_NGD.stride(1),
            SLICE=SLICE,
            **common,
        )
    mass_kernel[(triton.cdiv(max(key_lens), tiles["KEYS"]), len(key_lens))](
        q_QHD,
        k_NGD,
        torch.logsumexp(lse_SQH, 0),
        mass_N,
        requests,
        scale,
        q_QHD.stride(0),
        q_QHD.stride(1),
        k_NGD.stride(0),
        k_NGD.stride(1),
        **common,
    )
    return mass_N


def _inner_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _request_table(
    query_lens: Sequence[int], key_lens: Sequence[int], device: torch.device
) -> Tensor:
    """First query, queries, first key and keys of each request, int64 [R, 4] on the device."""
    rows = []
    first_query = first_key = 0
    for queries, keys in zip(query_lens, key_lens, strict=True):
        rows.append((first_query, queries, first_key, keys))
        first_query += queries
        first_key += keys
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type != "cuda":
        return table
    # From pageable memory the copy would wait for the device.
    return table.pin_memory().to(device, non_blocking=True)


@jit
def slice_lse_kernel(
    q: tl.tensor,
    k: tl.tensor,
    lse: tl.tensor,
    requests: tl.tensor,
    scale: tl.tensor,
    all_queries: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SLICE: tl.constexpr,
) -> None:
    """Natural log-sum-exp of a block of rows over one slice of the keys, into [S, Q, H]."""
    s = tl.program_id(0) // KV_HEADS
    g = tl.program_id(0) % KV_HEADS
    first_query, queries, first_key, keys = load_request(requests, tl.program_id(2))
    q += first_query * q_row
    k += first_key * k_row
    rows = queries * GROUP
    first_row = tl.program_id(1) * ROWS
    if first_row >= rows:
        return
    row = first_row + tl.arange(0, ROWS)
    if CHUNK >= D:
        q_RD = load_rows(q, row, rows, 0, g, q_row, q_head, GROUP, D, CHUNK)
    last_seen_R = keys - queries + row // GROUP
    top_R = tl.full([ROWS], float("-inf"), tl.float32)
    sum_R = tl.zeros([ROWS], tl.float32)
    for start in range(s * SLICE, tl.minimum((s + 1) * SLICE, keys), KEYS):
        key = start + tl.arange(0, KEYS)
        if CHUNK >= D:
            k_ND = load_keys(k, start, keys, 0, g, k_row, k_head, KEYS, D, CHUNK)
            logit_RN = dot(q_RD, k_ND, WIDEN)
        else:
            logit_RN = tl.zeros([ROWS, KEYS], tl.float32)
            for column in range(0, D, CHUNK):
                q_RD = load_rows(q, row, rows, column, g, q_row, q_head, GROUP, D, CHUNK)
                k_ND = load_keys(k, start, keys, column, g, k_row, k_head, KEYS, D, CHUNK)
                logit_RN += dot(q_RD, k_ND, WIDEN)
        logit_RN *= scale * LOG2_E
        logit_RN = tl.where(key[None, :] <= last_seen_R[:, None], logit_RN, float("-inf"))
        new_top_R = tl.maximum(top_R, tl.max(logit_RN, 1))
        # Rows without a visible key so far would subtract infinity from infinity.
        base_R = tl.where(new_top_R == float("-inf"), 0.0, new_top_R)
        sum_R = sum_R * tl.exp2(top_R - base_R) + tl.sum(tl.exp2(logit_RN - base_R[:, None]), 1)
        top_R = new_top_R
    lse += (s.to(tl.int64) * all_queries + first_query) * (KV_HEADS * GROUP)
    place_R = lse_offset(row, g, KV_HEADS, GROUP)
    # A slice with no visible key has top -inf, and its sum does not matter.
    result_R = (top_R + tl.log2(tl.where(sum_R > 0.0, sum_R, 1.0))) / LOG2_E
    tl.store(lse + place_R, result_R, mask=row < rows)


@jit
def mass_kernel(
    q: tl.tensor,
    k: tl.tensor,
    lse: tl.tensor,
    mass: tl.tensor,
    requests: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_row: tl.tensor,
    k_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Mean probability of a block of keys over all heads and rows of its request."""
    first_query, queries, first_key, keys = load_request(requests, tl.program_id(1))
    q += first_query * q_row
    k += first_key * k_row
    first = tl.program_id(0) * KEYS
    if first >= keys:
        return
    lse += first_query * (KV_HEADS * GROUP)
    key = first + tl.arange(0, KEYS)
    rows = queries * GROUP
    p_NR = tl.zeros([KEYS, ROWS], tl.float32)
    for g in range(KV_HEADS):
        if CHUNK >= D:
            k_ND = load_keys(k, first, keys, 0, g, k_row, k_head, KEYS, D, CHUNK)
        for first_row in range(0, rows, ROWS):
            row = first_row + tl.arange(0, ROWS)
            place_R = lse_offset(row, g, KV_HEADS, GROUP)
            lse_R = tl.load(lse + place_R, mask=row < rows, other=float("inf")) * LOG2_E
            # Keys first: the operand that stays in registers is then split over the warps.
            if CHUNK >= D:
                q_RD = load_rows(q, row, rows, 0, g, q_row, q_head, GROUP, D, CHUNK)
                logit_NR = dot(k_ND, q_RD, WIDEN)
            else:
                logit_NR = tl.zeros([KEYS, ROWS], tl.float32)
                for column in range(0, D, CHUNK):
                    q_RD = load_rows(q, row, rows, column, g, q_row, q_head, GROUP, D, CHUNK)
                    k_ND = load_keys(k, first, keys, column, g, k_row, k_head, KEYS, D, CHUNK)
                    logit_NR += dot(k_ND, q_RD, WIDEN)
            logit_NR *= scale * LOG2_E
            seen_NR = key[:, None] <= (keys - queries + row // GROUP)[None, :]
            p_NR += tl.exp2(tl.where(seen_NR, logit_NR - lse_R[None, :], float("-inf")))
    share = 1.0 / tl.maximum(rows * KV_HEADS, 1).to(tl.float32)
    tl.store(mass + first_key + key, tl.sum(p_NR, 1) * share, mask=key < keys)
