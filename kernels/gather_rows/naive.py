"""Ground truth for gathering rows: one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_rows(index_M: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Rows `index_M` of each tensor. See the package for the contract."""
    results: list[Tensor | None] = []
    for tensor in tensors:
        if tensor is None:
            results.append(None)
            continue
        rows = [tensor[row] for row in index_M.tolist()]
        results.append(torch.stack(rows) if rows else tensor[:0])
    return tuple(results)
