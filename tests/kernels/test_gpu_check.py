"""`make gpu-check` on a machine without a GPU: it says so, and its calls fit the operations."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from metok_vllm.benchmarks.commands import bench_options, bench_settings

ROOT = Path(__file__).resolve().parents[2]
GPU_CHECK = runpy.run_path(str(ROOT / "tools" / "gpu_check.py"))


def _gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/gpu_check.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    done = _gpu_check()
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def dry_run() -> str:
    done = _gpu_check("--dry-run")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_timed_call_can_be_made(dry_run: str) -> None:
    assert dry_run.count(": ran") == 2 * 6
    assert "nothing was timed" in dry_run


def test_the_engine_s_loads_are_commands_that_metok_bench_takes(dry_run: str) -> None:
    parser = argparse.ArgumentParser()
    bench_options.add_arguments(parser)
    for command in GPU_CHECK["engine_commands"]():
        assert command[1:4] == ["-m", "metok_vllm.cli", "bench"]
        arguments = parser.parse_args(command[4:])
        bench_options.check(arguments)
        assert bench_settings.sweep(arguments).rounds == 3
    assert dry_run.count("would run: -m metok_vllm.cli bench") == 2


def test_the_engine_is_left_out_where_it_is_not_and_its_failure_is_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    called: list[Sequence[str]] = []

    def call(command: Sequence[str]) -> int:
        called.append(command)
        return 3

    assert GPU_CHECK["measure_engine"](False, lambda name: None, call) == 0
    assert "no vllm and no metok_vllm.server here" in capsys.readouterr().out
    assert called == []
    assert GPU_CHECK["measure_engine"](False, lambda name: name, call) == 3
    assert called == GPU_CHECK["engine_commands"]()[:1]


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
