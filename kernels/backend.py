"""What every operation does first: check its inputs and choose its implementation.

Triton runs on CUDA, torch elsewhere. `METOK_KERNELS` (`auto`, `torch` or `triton`) forces one; it
is read here alone.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

import torch
from torch import Tensor

Implementation = Literal["torch", "triton"]

VARIABLE = "METOK_KERNELS"
CHOICES = ("auto", "torch", "triton")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def implementation_for(tensor: Tensor) -> Implementation:
    """The implementation for tensors on this device.

    Raises ValueError for an unknown `METOK_KERNELS`, and where Triton is forced for a CPU tensor
    outside its interpreter (`TRITON_INTERPRET=1`).
    """
    choice = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {choice!r}")
    if choice == "auto":
        return "triton" if tensor.is_cuda and _installed() else "torch"
    if choice == "triton" and not (tensor.is_cuda or interpreted()):
        raise ValueError(f"{VARIABLE}=triton needs tensors on CUDA, got one on {tensor.device}")
    return cast(Implementation, choice)


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def require(met: bool, demand: str, **tensors: Tensor) -> None:
    """Raise ValueError with the demand and the tensors that do not meet it."""
    if not met:
        given = ", ".join(describe(name, tensor) for name, tensor in tensors.items())
        raise ValueError(f"{demand}; got {given}")


def describe(name: str, tensor: Tensor) -> str:
    """`name [2, 3] torch.float32 on cpu`, for messages."""
    return f"{name} {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
