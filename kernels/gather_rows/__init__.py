"""Gather rows: the same rows of several tensors, in one call.

A pruning stage keeps the same tokens of hidden states, residual and positions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metok_vllm.kernels.backend import INTEGERS, implementation_for, require
from metok_vllm.kernels.gather_rows import eager

__all__ = ["gather_rows"]


def gather_rows(index_M: Tensor, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Rows `index_M` of each [N, ...] tensor, as new contiguous tensors; None stays None.

    `index_M` is int64 or int32, every entry in [0, N); entries are not read back to be checked.
    Raises ValueError for an index that is no integer vector, or tensors of unequal row counts or
    devices.
    """
    require(index_M.ndim == 1 and index_M.dtype in INTEGERS, "integer rows [M]", index=index_M)
    present = [tensor for tensor in tensors if tensor is not None]
    for tensor in present:
        require(
            tensor.ndim > 0
            and tensor.shape[0] == present[0].shape[0]
            and tensor.element_size() <= 8
            and tensor.device == index_M.device,
            "tensors [N, ...] of equally many rows, at most 8 bytes a number, beside the index",
            index=index_M,
            tensor=tensor,
            first=present[0],
        )
    if present and implementation_for(index_M) == "triton":
        from metok_vllm.kernels.gather_rows import triton

        return triton.gather_rows(index_M, *tensors)
    return eager.gather_rows(index_M, *tensors)
