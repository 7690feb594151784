"""The staged checkpoint, written and loaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.reference.staged_checkpoint import load_model, write_checkpoint


@pytest.fixture(scope="session")
def staged_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "model"
    write_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def staged_model(staged_checkpoint: Path) -> Any:
    return load_model(staged_checkpoint)
