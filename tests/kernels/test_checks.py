"""Every kernel against its naive version: torch here, Triton in its interpreter.

The interpreter needs a process of its own: it is switched on before Triton is first imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from metok_vllm.kernels.backend import VARIABLE
from tests.kernels.checks import Check, assert_close, assert_same, poisoned
from tests.kernels.checks.registry import all_checks

ROOT = Path(__file__).resolve().parents[2]
CHECKS = all_checks()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_torch_equals_naive(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    check.run("cpu")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, Any]]:
    """Results of all checks by name, from one run of the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.checks"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", VARIABLE: "triton"},
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-2000:]
    return {result["check"]: result for result in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_triton_equals_naive(name: str, interpreted: dict[str, dict[str, Any]]) -> None:
    assert name in interpreted, "the interpreter ended before this check"
    assert interpreted[name]["error"] is None, interpreted[name]["error"]


def test_fresh_memory_is_poisoned() -> None:
    before = torch.empty
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(2).new_empty(3, dtype=torch.bfloat16).isnan().all()
        assert (torch.empty_like(torch.arange(3)) < 0).all()
    assert torch.empty is before


def test_one_unwritten_number_fails() -> None:
    expected = torch.ones(1000)
    actual = expected.clone()
    assert_close(actual, expected, 1e-6)
    actual[500] = torch.nan
    with pytest.raises(AssertionError, match="nan"):
        assert_close(actual, expected, 1e-6)


def test_a_difference_over_the_bound_fails() -> None:
    expected = torch.ones(100)
    with pytest.raises(AssertionError, match="error 2e-05 over 1e-05"):
        assert_close(expected * (1 + 2e-5), expected, 1e-5)


def test_another_bit_fails() -> None:
    zero = torch.zeros(1)
    with pytest.raises(AssertionError):
        assert_same(-zero, zero)
    with pytest.raises(AssertionError):
        assert_same(zero.half(), zero)
