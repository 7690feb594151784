"""Move KV in plain torch: one gather, one scatter."""

from __future__ import annotations

from torch import Tensor


def move_kv(cache_BGSC: Tensor, from_M: Tensor, to_M: Tensor) -> None:
    """See the package."""
    size = cache_BGSC.shape[2]
    from_M, to_M = from_M.long(), to_M.long()
    rows_MGC = cache_BGSC[from_M // size, :, from_M % size]
    cache_BGSC[to_M // size, :, to_M % size] = rows_MGC
