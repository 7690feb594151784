"""Counters of an engine that several API servers read: each increase is counted once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

HIGH_WATER_FILE = "metok_marks.json"


class CounterHighWater:
    """The highest value seen of each counter, so that an increase is counted once.

    Several API servers read the same engines, and prometheus_client sums what each of them
    counts. So they share the values in a file in `PROMETHEUS_MULTIPROC_DIR`. Without that
    variable there is one process, and the values stay in memory.
    """

    def __init__(self) -> None:
        self._marks: list[int] = []

    def increase(self, values: Sequence[int]) -> int:
        """By how much `values` exceed the highest so far, summed; then raises those.

        A lower value is a late answer, or comes from an engine that was replaced: it counts 0.
        """
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not folder:
            self._marks, increase = _raised(self._marks, values)
            return increase
        with (Path(folder) / HIGH_WATER_FILE).open("a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            file.seek(0)
            marks, increase = _raised(json.loads(file.read() or "[]"), values)
            if increase:
                file.truncate(0)
                file.write(json.dumps(marks))
            return increase


def _raised(marks: Sequence[int], values: Sequence[int]) -> tuple[list[int], int]:
    """The marks raised to `values`, and the sum of the increases."""
    missing = [0] * (len(values) - len(marks))
    before = [*marks, *missing]
    after = [max(mark, value) for mark, value in zip(before, values, strict=False)]
    after += before[len(values) :]
    return after, sum(after) - sum(before)
