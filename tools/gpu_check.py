"""Check and time every kernel on this machine's GPU, then the engine: what `make gpu-check` runs.

    python tools/gpu_check.py [--dry-run]

Any Python with torch and Triton will do for the kernels; the package need not be installed. Its
folders are then found where pyproject.toml says they are, and the engine is left out.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("metok_vllm.kernels", "metok_vllm.benchmarks")


def use_tree() -> None:
    """Make the repository's packages importable under their installed names."""
    sys.path.insert(0, str(ROOT))
    with (ROOT / "pyproject.toml").open("rb") as file:
        folders: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    for package in NEEDED:
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


if __name__ == "__main__":
    use_tree()
    status: int = importlib.import_module("metok_vllm.benchmarks.kernels.gpu_check").main()
    loads = importlib.import_module("metok_vllm.benchmarks.throughput.gpu_loads")
    # Speeds of operations that are wrong are of no use.
    sys.exit(status or loads.run("--dry-run" in sys.argv))
