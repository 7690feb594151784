"""Gather rows in plain torch."""

from __future__ import annotations

from torch import Tensor


def gather_rows(index_M: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """See the package."""
    return tuple(None if x is None else x.index_select(0, index_M) for x in tensors)
