"""Imports run downwards: kernels <- metok_vllm <- server, benchmarks; no circle between folders.

Read from the files themselves, imports inside functions included, under the names that are
installed: a static tool does not see through the mapping in pyproject.toml.
"""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the modules of a top-level folder may import of the others.
BELOW = {
    "kernels": set[str](),
    "metok_vllm": {"kernels"},
    "server": {"kernels", "metok_vllm"},
    "benchmarks": {"kernels", "metok_vllm"},
    "training": {"kernels", "metok_vllm", "benchmarks"},
}


def _modules() -> dict[str, Path]:
    """Every module of ours by the name that it is imported by."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        mapping: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    found = {}
    for package, folder in {**mapping, "training": "training"}.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *inside]).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = _modules()


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _edges() -> Iterator[tuple[Path, Path]]:
    """Pairs of files: the first imports the second."""
    for name, path in MODULES.items():
        for imported in _imported(path):
            while imported and imported not in MODULES:
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                yield path, MODULES[imported]


EDGES = list(_edges())


def _folder(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def _room(path: Path) -> str:
    """A folder; a file that stands in a top-level folder itself is a room of its own."""
    inside = path.relative_to(ROOT)
    if path.name == "__init__.py" or len(inside.parts) > 2:
        return inside.parent.as_posix()
    return inside.as_posix()


def test_the_imports_are_found() -> None:
    names = {(a.relative_to(ROOT).as_posix(), b.relative_to(ROOT).as_posix()) for a, b in EDGES}
    assert ("metok_vllm/models/packing.py", "kernels/adaptive_pool/__init__.py") in names
    assert ("server/api/endpoint.py", "server/media/connector.py") in names


@pytest.mark.parametrize("folder", BELOW)
def test_only_what_is_below_is_imported(folder: str) -> None:
    wrong = {
        f"{a.relative_to(ROOT)} imports {b.relative_to(ROOT)}"
        for a, b in EDGES
        if _folder(a) == folder and _folder(b) not in BELOW[folder] | {folder}
    }
    assert not wrong


def test_no_circle_between_folders() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for a, b in EDGES:
        if _room(a) != _room(b):
            graph[_room(a)].add(_room(b))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"folders import each other: {' <- '.join(error.args[1])}")


def test_nobody_imports_the_command_line() -> None:
    assert not [a for a, b in EDGES if b == ROOT / "metok_vllm" / "cli.py"]
