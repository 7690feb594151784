"""Move KV: rows of a paged KV cache to other slots of the same cache, in place.

The last step of a prompt that was prefilled in chunks: what a layer keeps moves to the front of the
request's blocks, and the blocks behind it can be freed.

A slot is block * S + place in the block. The cache is one layer's as vLLM 0.32 hands it to its
CUDA backends (FlashAttention, Triton): logical shape [B, G, S, C] with any strides but the last,
so all of its memory layouts (block or head outermost, layers interleaved) are served. Its CPU
backend packs keys differently and must be written through the backend instead.

Shape suffixes: B blocks, G KV heads, S slots of a block, C content (K and V of one head), M rows.
"""

from __future__ import annotations

from torch import Tensor

from metok_vllm.kernels.backend import implementation_for
from metok_vllm.kernels.contract import INTEGERS, require
from metok_vllm.kernels.move_kv import eager

__all__ = ["move_kv"]


def move_kv(cache_BGSC: Tensor, from_M: Tensor, to_M: Tensor) -> None:
    """Copy the content of slots `from_M` to slots `to_M`; all is read before anything is written.

    Slots are int64 or int32 in [0, B * S), those written to distinct; they are not read back to be
    checked. Raises ValueError for shapes, dtypes or devices that do not fit together.
    """
    require(
        cache_BGSC.ndim == 4 and cache_BGSC.stride(3) == 1 and cache_BGSC.element_size() <= 8,
        "a cache [B, G, S, C] with its content in one piece",
        cache=cache_BGSC,
    )
    require(
        from_M.ndim == to_M.ndim == 1
        and from_M.shape == to_M.shape
        and from_M.dtype in INTEGERS
        and to_M.dtype in INTEGERS
        and from_M.device == to_M.device == cache_BGSC.device,
        "equally many integer slots to read and to write, on the device of the cache",
        read=from_M,
        written=to_M,
        cache=cache_BGSC,
    )
    if implementation_for(cache_BGSC) == "triton":
        from metok_vllm.kernels.move_kv import triton

        triton.move_kv(cache_BGSC, from_M, to_M)
    else:
        eager.move_kv(cache_BGSC, from_M, to_M)
