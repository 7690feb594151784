"""Tiles of queries and keys: how large, how they are loaded, how they are multiplied.

Shape suffixes as in the package; R rows of a tile, N keys of a tile, columns of D in chunks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from metok_vllm.kernels.jit import jit


def tile_sizes(dtype: torch.dtype, head_size: int) -> dict[str, int]:
    """Rows, keys and columns of a tile, chosen to fit the registers without spilling.

    No tensor core has full float32 precision, so float32 tiles take few columns at a time.
    """
    if dtype == torch.float32:
        return {"ROWS": 32, "KEYS": 32, "CHUNK": 16, "num_warps": 4}
    columns = max(16, triton.next_power_of_2(head_size))
    if columns > 128:
        return {"ROWS": 32, "KEYS": 32, "CHUNK": columns, "num_warps": 4}
    return {"ROWS": 64, "KEYS": 64, "CHUNK": columns, "num_warps": 8}


@jit
def load_request(requests: tl.tensor, number: tl.tensor) -> tl.tensor:
    """First query, queries, first key and keys of one request; the two counts as int32."""
    row = requests + 4 * number
    queries, keys = tl.load(row + 1).to(tl.int32), tl.load(row + 3).to(tl.int32)
    return tl.load(row), queries, tl.load(row + 2), keys


@jit
def lse_offset(
    row: tl.tensor, g: tl.tensor, KV_HEADS: tl.constexpr, GROUP: tl.constexpr
) -> tl.tensor:
    """Offsets of the rows of KV head g in a log-sum-exp [Q, H]."""
    return row // GROUP * (KV_HEADS * GROUP) + g * GROUP + row % GROUP


@jit
def load_rows(
    q: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    column: tl.tensor,
    g: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Columns from `column` on of the rows of KV head g [R, CHUNK]; 0 where there are none."""
    d = column + tl.arange(0, CHUNK)
    offset = row // GROUP * q_row + (g * GROUP + row % GROUP) * q_head
    mask = (row < rows)[:, None] & (d < D)[None, :]
    return tl.load(q + offset[:, None] + d[None, :], mask=mask, other=0.0)


@jit
def load_keys(
    k: tl.tensor,
    first: tl.tensor,
    keys: tl.tensor,
    column: tl.tensor,
    g: tl.tensor,
    k_row: tl.tensor,
    k_head: tl.tensor,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tl.tensor:
    """Columns from `column` on of the keys from `first` on [N, CHUNK]; 0 where there are none."""
    n, d = tl.arange(0, KEYS), column + tl.arange(0, CHUNK)
    mask = (first + n < keys)[:, None] & (d < D)[None, :]
    # Only the start of the tile can lie further away than 32 bits reach.
    tile = k + tl.cast(first, tl.int64) * k_row + tl.cast(g, tl.int64) * k_head
    return tl.load(tile + n[:, None] * k_row + d[None, :], mask=mask, other=0.0)


@jit
def dot(a_RD: tl.tensor, b_ND: tl.tensor, WIDEN: tl.constexpr) -> tl.tensor:
    """Products [R, N] of rows and rows, in float32."""
    if WIDEN:
        # Triton's interpreter holds bfloat16 as integers and would multiply their bit patterns.
        a_RD, b_ND = a_RD.to(tl.float32), b_ND.to(tl.float32)
    # TF32 would keep ten bits of float32; the narrower types ignore this.
    return tl.dot(a_RD, tl.trans(b_ND), input_precision="ieee")
