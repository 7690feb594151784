"""Ground truth for moving KV: every slot's content is copied out, then put where it belongs."""

from __future__ import annotations

from torch import Tensor


def move_kv(cache_BGSC: Tensor, from_M: Tensor, to_M: Tensor) -> None:
    """Copy slots `from_M` to slots `to_M` in place. See the package for the contract."""
    size = cache_BGSC.shape[2]
    contents = [cache_BGSC[slot // size, :, slot % size].clone() for slot in from_M.tolist()]
    for slot, content in zip(to_M.tolist(), contents, strict=True):
        cache_BGSC[slot // size, :, slot % size] = content
