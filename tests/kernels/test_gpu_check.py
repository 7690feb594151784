"""`make gpu-check` on a machine without a GPU: it says so, and its calls fit the operations."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def _gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = _gpu_check()
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert done.stdout == ""


def test_every_timed_call_can_be_made() -> None:
    done = _gpu_check("--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(": ran") == 2 * 8
    assert "nothing was timed" in done.stdout


def test_only_torch_triton_and_the_repository_are_imported() -> None:
    program = (
        "import sys, metok_vllm.benchmarks.kernels.gpu_check;"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"vllm", "transformers", "pydantic", "pytest", "yaml", "av"} & set(
        done.stdout.split()
    )


def test_the_package_need_not_be_installed() -> None:
    # Without site, .pth files and with them the editable install are not there.
    done = subprocess.run(
        [sys.executable, "-S", "tools/gpu_check.py", "--dry-run"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_everything_passes() -> None:
    done = _gpu_check()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
