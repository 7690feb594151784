"""Deadlines are measured here, in a process that holds what thousands of tests have left."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _small_heap() -> Iterator[None]:
    """Full collections look at objects of these tests alone, as in a server, where vLLM does it.

    Over everything that has been imported and cached until now, one takes most of a second.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
