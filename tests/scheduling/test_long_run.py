"""Thousands of random events in many engines: no block is lost, and every rare case occurs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.scheduling.drive import Drive
from tests.scheduling.runs import finish, run_event
from tests.scheduling.settings import pick_settings

ENGINES, EVENTS = 20, 250


@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_thousands_of_events(ahead: bool) -> None:
    counts: Counter[str] = Counter()
    for seed in range(ENGINES):
        rng = random.Random(seed)
        drive = Drive(pick_settings(rng.randint, ahead))
        for _ in range(EVENTS):
            run_event(drive, rng.randint, crowd=10)
        finish(drive)
        counts += drive.counts
    assert counts["aborted"] + counts["finished"] == counts["arrived"]
    for trouble in ("preempted", "trimmed", "chunked", "aborted in flight", "reset"):
        assert counts[trouble] > 20, f"{trouble}: {counts}"
