"""The checks of all operations, and a run of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.kernels.checks import (
    Check,
    adaptive_pool,
    attention_mass,
    event_topk,
    gather_rows,
)


def all_checks() -> list[Check]:
    """Every check once; names are unique."""
    modules = (adaptive_pool, attention_mass, event_topk, gather_rows)
    found = [check for module in modules for check in module.checks()]
    names = {check.name for check in found}
    assert len(names) == len(found)
    return found


def results(device: str) -> Iterator[dict[str, object]]:
    """Name, seconds and error (None if there is none) of every check."""
    for check in all_checks():
        started = time.perf_counter()
        error = None
        try:
            check.run(device)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        seconds = round(time.perf_counter() - started, 3)
        yield {"check": check.name, "seconds": seconds, "error": error}
