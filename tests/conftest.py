"""Fixtures of several folders, and one thread for every test and every server it starts.

vLLM's CPU threads spin while they wait. With one per core, the server's other processes and the
test's client would hardly run.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.environment  # noqa: F401 - before an engine changes it

torch.set_num_threads(1)


def _make_importable(package: str) -> None:
    """Import a package of the root that is not installed, with the root kept off `sys.path`."""
    folder = Path(__file__).resolve().parent.parent / package
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[package] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package])


_make_importable("training")

# Folders whose tests share engines or a server; elsewhere a module's tests share fixtures.
SHARING = {"engine", "conformance"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What shares an engine or a server runs in one process, where pytest-xdist has several."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    root = Path(__file__).resolve().parent
    for item in items:
        path = item.path.relative_to(root)
        group = path.parts[0] if path.parts[0] in SHARING else str(path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def staged_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random video model of eight layers, on disk."""
    from tests.reference.staged_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("staged") / "model"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def staged_model(staged_checkpoint: Path) -> Any:
    """The staged checkpoint in Hugging Face, in float32."""
    from tests.reference.staged_checkpoint import load_model

    return load_model(staged_checkpoint)
