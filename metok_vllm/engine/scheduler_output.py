"""What the scheduler tells the workers with every step."""

from __future__ import annotations

from dataclasses import dataclass

NOTE = "metok_note"  # attribute of a SchedulerOutput, pickled with it


@dataclass(frozen=True)
class StepNote:
    """Rows to cut, and how the pool stands.

    `trims` has the blocks that a request keeps, by cache group; `unplanned` are requests that
    stages 2 and 3 leave alone for a reason that a worker cannot see. The pool's null block, which
    is nobody's, is not counted.
    """

    trims: dict[str, tuple[int, ...]]
    total_blocks: int
    free_blocks: int
    freed_blocks: int
    unplanned: tuple[str, ...] = ()
