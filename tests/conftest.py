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
from xdist.scheduler import LoadScopeScheduling

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

# Folders whose tests share engines or a server, or measure times that the others would change;
# elsewhere a module's tests share fixtures.
SHARING = {"engine", "conformance", "faults"}


class SharedFixtures(LoadScopeScheduling):
    """Tests that share an engine or a server run in one process of pytest-xdist."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        folder = path.split("/")[1]
        return folder if folder in SHARING else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtures:
    return SharedFixtures(config, log)


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
