"""What every operation says about an input outside its contract: name, shape, dtype, device."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def describe(name: str, tensor: Tensor) -> str:
    """`name [2, 3] torch.float32 on cpu`, for messages."""
    return f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def require(met: bool, demand: str, **tensors: Tensor) -> None:
    """Raise ValueError with the demand and the tensors that do not meet it."""
    if not met:
        given = ", ".join(describe(name, tensor) for name, tensor in tensors.items())
        raise ValueError(f"{demand}; got {given}")
