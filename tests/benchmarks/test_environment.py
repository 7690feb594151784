"""The record of versions and hardware: complete, without side effects."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata

import pytest

from metok_vllm.benchmarks.environment import environment


def test_what_a_reader_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment()
    assert found["versions"]["metok-vllm"] == metadata.version("metok-vllm")
    assert found["versions"]["torch"] == metadata.version("torch")
    assert (found["cores"], found["threads"]) == (os.cpu_count(), 3)
    assert found["processor"]
    assert found["memory_gib"] > 0
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment()["threads"] is None


def test_without_git_or_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = environment()
    assert (found["commit"], found["gpus"]) == ("unknown", [])


def test_it_neither_sets_anything_nor_loads_an_engine() -> None:
    # A server that the benchmark starts gets this process's environment.
    code = """
import os, sys
before = dict(os.environ)
import metok_vllm.benchmarks.throughput.servers, metok_vllm.benchmarks.client.workloads
from metok_vllm.benchmarks.environment import environment
environment()
assert dict(os.environ) == before
assert "vllm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
