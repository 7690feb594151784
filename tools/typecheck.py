"""Run mypy on the packages under their installed names, and on examples, tests, tools and
training.

    .venv/bin/python tools/typecheck.py [mypy options]

kernels/, server/ and benchmarks/ are folders beside metok_vllm/ that are installed inside it. mypy
has no such mapping, so it checks a tree of links with the installed layout, which is read from
pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "typecheck"
OTHER_FOLDERS = ("examples", "tests", "tools", "training")


def package_dirs() -> dict[str, str]:
    """Each package's folder below the root, outer packages first."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        mapping: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    return dict(sorted(mapping.items()))


def link_tree(mapping: dict[str, str]) -> None:
    """Create TREE with a folder for each package and links to its files."""
    shutil.rmtree(TREE, ignore_errors=True)
    for package, folder in mapping.items():
        target = TREE / Path(*package.split("."))
        target.mkdir(parents=True)
        for entry in (ROOT / folder).iterdir():
            (target / entry.name).symlink_to(entry)
    for name in OTHER_FOLDERS:
        if any((ROOT / name).rglob("*.py")):
            (TREE / name).symlink_to(ROOT / name)


def source_path(line: str, mapping: dict[str, str]) -> str:
    """A line of mypy's output with the file's path in the repository."""
    for package, folder in mapping.items():
        prefix = re.escape(package.replace(".", "/"))
        line = re.sub(rf"^{prefix}/", f"{folder}/", line)
    return line


def main() -> int:
    """Run mypy and return its exit status."""
    mapping = package_dirs()
    link_tree(mapping)
    roots = sorted({package.split(".")[0] for package in mapping})
    present = [name for name in OTHER_FOLDERS if (TREE / name).exists()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy"),
            *("--config-file", str(ROOT / "pyproject.toml")),
            *("--cache-dir", str(ROOT / ".mypy_cache")),
            *sys.argv[1:],
            *roots,
            *present,
        ],
        cwd=TREE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in done.stdout.splitlines():
        print(source_path(line, mapping))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
