"""`triton.jit` with a type, so that kernels pass the strict type check.

Every parameter is annotated `tl.tensor`: Triton takes types from the call and evaluates annotations
as names that a kernel may use. Separate from `backend.py` because Triton may be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """A kernel, or a function that kernels call."""
    return triton.jit(function)
