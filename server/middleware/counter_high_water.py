"""How far numbers have risen, known to all API server processes of one server.

Every API server asks the same engines, and prometheus_client adds up what the processes count. So
they share one note of what has been counted already, beside prometheus_client's own files.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

NAME = "metok_marks.json"


class HighMarks:
    """The highest value seen at each place of a sequence.

    Held in `PROMETHEUS_MULTIPROC_DIR` where that is set, which stands for several processes, else
    in memory.
    """

    def __init__(self) -> None:
        self._marks: list[int] = []

    def rise(self, values: Sequence[int]) -> int:
        """By how much `values` are above the marks, together; they become the marks there.

        A value below its mark is an answer that came late, or from an engine that was replaced.
        """
        folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        if not folder:
            self._marks, risen = _raised(self._marks, values)
            return risen
        with (Path(folder) / NAME).open("a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
            file.seek(0)
            marks, risen = _raised(json.loads(file.read() or "[]"), values)
            if risen:
                file.truncate(0)
                file.write(json.dumps(marks))
            return risen


def _raised(marks: Sequence[int], values: Sequence[int]) -> tuple[list[int], int]:
    missing = [0] * (len(values) - len(marks))
    before = [*marks, *missing]
    after = [max(mark, value) for mark, value in zip(before, values, strict=False)]
    after += before[len(values) :]
    return after, sum(after) - sum(before)
