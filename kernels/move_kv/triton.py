"""Move KV in Triton: the rows to a buffer, then to their slots; two launches of one kernel.

A single launch could not read everything before it writes: a slot may be both source and target.
Floor: every row read twice and written twice, 2*G*D numbers a row, plus 16 bytes of slots.

Shape suffixes as in the package.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from metok_vllm.kernels.jit import jit

TILE = 1024
_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def move_kv(cache_BGSC: Tensor, from_M: Tensor, to_M: Tensor) -> None:
    """See the package. Takes a buffer as large as the moved rows."""
    _, heads, size, content = cache_BGSC.shape
    # As integers, so that quantised caches and NaN travel bit by bit.
    cache = cache_BGSC.view(_SAME_WIDTH[cache_BGSC.element_size()])
    rows = cache.new_empty(len(from_M), heads * content)
    if not rows.numel():
        return
    grid = (len(from_M), triton.cdiv(heads * content, TILE))
    geometry = (size, heads * content, content, *cache.stride()[:3])
    copy_slots_kernel[grid](cache, rows, from_M.contiguous(), *geometry, WRITE=False, TILE=TILE)
    copy_slots_kernel[grid](cache, rows, to_M.contiguous(), *geometry, WRITE=True, TILE=TILE)


@jit
def copy_slots_kernel(
    cache: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    content: tl.tensor,
    block_stride: tl.tensor,
    head_stride: tl.tensor,
    slot_stride: tl.tensor,
    WRITE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One tile of one row: from its slot to the buffer, or with WRITE the other way."""
    m = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + m).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < width
    # A cache has more numbers than 32 bits can count.
    start = (slot // size) * block_stride + (slot % size) * slot_stride
    place = start + (column // content).to(tl.int64) * head_stride + column % content
    if WRITE:
        tl.store(cache + place, tl.load(rows + m * width + column, mask=inside), mask=inside)
    else:
        tl.store(rows + m * width + column, tl.load(cache + place, mask=inside), mask=inside)
