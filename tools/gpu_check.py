"""Check and time every kernel on this machine's GPU, then the engine: what `make gpu-check` runs.

    python tools/gpu_check.py [--dry-run]

The kernels need a Python with torch and Triton; the package need not be installed, because its
folders are found through pyproject.toml. The engine's part compares METok with plain vLLM on the
sizes of LLaVA-OneVision-7B and LongVA-7B. Their weights are random: times and memory are real,
answers are not. That part needs the installed package with vLLM for CUDA and is skipped without it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS_NEED = ("metok_vllm.kernels", "metok_vllm.benchmarks")
ENGINE_NEEDS = ("vllm", "metok_vllm.server")
MODELS = ("llava-onevision-7b", "longva-7b")
LOAD = (
    *("--frames", "64", "--max-concurrency", "8", "--num-prompts", "16", "--output-len", "16"),
    *("--rounds", "3"),
)


def add_packages() -> None:
    """Make the repository's packages importable under their installed names."""
    sys.path.insert(0, str(ROOT))
    with (ROOT / "pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    for package in KERNELS_NEED:
        if find_spec(package) is not None:
            continue
        path = ROOT / folders[package]
        spec = spec_from_file_location(
            package, path / "__init__.py", submodule_search_locations=[str(path)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[package] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])


def engine_commands() -> list[list[str]]:
    """One `metok bench` a model; results go to a folder of its name below `gpu-check`."""
    bench = [sys.executable, "-m", "metok_vllm.cli", "bench"]
    return [
        [*bench, "--checkpoint", model, *LOAD, "--result-dir", f"gpu-check/{model}"]
        for model in MODELS
    ]


def measure_engine(
    dry_run: bool,
    can_import: Callable[[str], object] = find_spec,
    call: Callable[[Sequence[str]], int] = subprocess.call,
) -> int:
    """Exit status of the first command that fails, else 0. `dry_run` only prints them."""
    missing = [name for name in ENGINE_NEEDS if can_import(name) is None]
    if missing and not dry_run:
        print(f"no {' and no '.join(missing)} here: the engine at 7B sizes was left out")
        return 0
    for command in engine_commands():
        print(*(["would run:"] if dry_run else []), *command[1:], flush=True)
        status = 0 if dry_run else call(command)
        if status:
            return status
    return 0


if __name__ == "__main__":
    add_packages()
    kernels_status: int = importlib.import_module("metok_vllm.benchmarks.kernels.gpu_check").main()
    # The speed of wrong kernels is of no use.
    sys.exit(kernels_status or measure_engine("--dry-run" in sys.argv))
