"""Which implementation of an operation runs: Triton on CUDA, torch elsewhere, or one by force.

`METOK_KERNELS` is read here and nowhere else: `auto` (default), `torch` or `triton`.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, cast

from torch import Tensor

Implementation = Literal["torch", "triton"]

VARIABLE = "METOK_KERNELS"
CHOICES = ("auto", "torch", "triton")


def forced() -> Implementation | None:
    """What `METOK_KERNELS` asks for; None for `auto`. ValueError for any other word."""
    value = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if value not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, got {value!r}")
    return None if value == "auto" else cast(Implementation, value)


def implementation_for(tensor: Tensor) -> Implementation:
    """The implementation for tensors on this device.

    Raises ValueError when Triton is forced for a tensor that it cannot reach: without a GPU it
    runs only in its interpreter (`TRITON_INTERPRET=1`).
    """
    choice = forced()
    if choice is None:
        return "triton" if tensor.is_cuda and _installed() else "torch"
    if choice == "triton" and not (tensor.is_cuda or interpreted()):
        raise ValueError(f"{VARIABLE}=triton needs tensors on CUDA, got one on {tensor.device}")
    return choice


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
