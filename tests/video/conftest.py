"""Keeps the heap small, because these tests measure deadlines after thousands of others."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _small_heap() -> Iterator[None]:
    """Freeze all earlier objects, as vLLM does in a server.

    A full collection over all imported and cached objects takes most of a second.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
