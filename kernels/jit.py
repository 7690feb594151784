"""`triton.jit` with a type, so that kernels can be checked as strictly as everything else.

Parameters are annotated `tl.tensor` whatever they are: Triton takes their types from the call, and
resolves annotations as names that a kernel may use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton


def jit(function: Callable[..., Any]) -> Any:
    """A kernel, or a function that kernels call."""
    return triton.jit(function)
