"""Every Triton kernel compiles for the GPUs it is meant for, and fits their registers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_REGISTERS = 200  # of 255 that a thread can have; past those it spills


def _compiled(capability: int) -> list[dict[str, Any]]:
    # Without the interpreter, whatever the shell that started the tests says.
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "metok_vllm.benchmarks.kernels.compiled",
            "--capability",
            str(capability),
        ],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.timeout(900)
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_and_spills_nothing(capability: int) -> None:
    results = _compiled(capability)
    sources = "".join(path.read_text() for path in (ROOT / "kernels").glob("*/triton.py"))
    written = set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE))
    assert {result["kernel"] for result in results} == written
    assert {result["capability"] for result in results} == {capability}
    # Nothing read would mean nothing checked.
    assert all(result["registers"] > 0 for result in results)
    too_many = [result for result in results if result["registers"] > MOST_REGISTERS]
    assert not too_many
    assert not [result for result in results if result["spilled"]]
