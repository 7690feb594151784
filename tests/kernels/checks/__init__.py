"""Checks of every kernel against its naive version, as plain functions without pytest.

The test suite runs the torch versions here, and the Triton versions in a process with Triton's
interpreter. `make gpu-check` runs both on a GPU, without pytest. Inputs are random. New memory is
filled with NaN, so that unwritten results show.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

SIZES = (1, 63, 100, 1000, 2049)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POISON = -0x5A5A5A5A


@dataclass(frozen=True)
class Check:
    """One comparison; `run(device)` raises AssertionError where kernel and naive version differ."""

    operation: str
    case: str
    run: Callable[[str], None]

    @property
    def name(self) -> str:
        """Unique among all checks."""
        return f"{self.operation}: {self.case}"


def generator(name: str) -> torch.Generator:
    """Random numbers that depend on the name of a case alone."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def short(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def assert_close(actual: Tensor, expected: Tensor, bound: float) -> None:
    """The norm of the difference is at most `bound` of the norm of what is expected."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = (actual.double().cpu() - expected.double().cpu()).norm()
    error = float(difference / expected.double().cpu().norm().clamp(min=1e-30))
    # Written so that NaN fails.
    assert error <= bound, f"error {error:.3g} over {bound:.3g}"


def assert_same(actual: Tensor | None, expected: Tensor | None) -> None:
    """Equal to the last bit, NaN included."""
    if expected is None or actual is None:
        assert actual is expected
        return
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert actual.dtype == expected.dtype
    assert _bytes(actual) == _bytes(expected)


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        tensor = make(*args, **kwargs)
        if tensor.dtype.is_floating_point:
            return tensor.fill_(torch.nan)
        if tensor.dtype == torch.bool:
            return tensor.fill_(True)
        return tensor.fill_(max(POISON, torch.iinfo(tensor.dtype).min))

    return filled


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN, or an integer far out of range, inside the context."""
    with (
        mock.patch.object(torch, "empty", _poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoned(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", _poisoned(Tensor.new_empty)),
    ):
        yield
