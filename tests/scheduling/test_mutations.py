"""Each deliberate mistake in scheduler or evictor fails the invariants."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from metok_vllm.engine import scheduler as scheduling
from metok_vllm.engine.kv_cache.buffer_rows import BufferRows
from metok_vllm.engine.kv_cache.cache_manager import StagedCacheManager
from metok_vllm.engine.kv_cache.evictor import StageManager
from metok_vllm.engine.request_tables import RequestTables
from metok_vllm.engine.runner import StagedRunner
from tests.scheduling.arrivals import PromptSpec
from tests.scheduling.drive import Drive
from tests.scheduling.invariants import check_nothing_in_flight_is_taken_back
from tests.scheduling.runs import deliver, finish, run_event, schedule
from tests.scheduling.settings import Settings, pick_settings

Patch = pytest.MonkeyPatch


def trim_without_steps_in_flight(patch: Patch) -> None:
    stock = StageManager.trim

    def trim(self: Any, request_id: str) -> int:
        self.evictor_state.max_allocated_tokens[request_id] = 0
        return stock(self, request_id)

    patch.setattr(StageManager, "trim", trim)


def trim_too_early(patch: Patch) -> None:
    stock = scheduling.StagedScheduling._evict

    def evict(self: Any) -> Any:
        flying = {name: r.num_in_flight_tokens for name, r in self.requests.items()}
        for request in self.requests.values():
            request.num_in_flight_tokens = 0
        trims = stock(self)
        for name, request in self.requests.items():
            request.num_in_flight_tokens = flying[name]
        return trims

    patch.setattr(scheduling.StagedScheduling, "_evict", evict)


def worker_does_not_trim(patch: Patch) -> None:
    patch.setattr(RequestTables, "trim", lambda self, trims: None)


def buffer_is_ignored(patch: Patch) -> None:
    patch.delattr(scheduling.StagedScheduling, "_try_schedule_encoder_inputs")


def buffer_rows_overlap(patch: Patch) -> None:
    patch.setattr(BufferRows, "first_row", lambda self, name: 0 if name in self._reserved else None)


def pruned_prefix_is_shared(patch: Patch) -> None:
    patch.delattr(StageManager, "cache_blocks")


def nothing_is_trimmed(patch: Patch) -> None:
    patch.setattr(StageManager, "trim", lambda self, name: len(self.req_to_blocks[name]))


def tail_is_freed_twice(patch: Patch) -> None:
    stock = StageManager.trim

    def trim(self: Any, request_id: str) -> int:
        blocks = list(self.req_to_blocks[request_id])
        keep = stock(self, request_id)
        self.block_pool.free_blocks(blocks[keep:])
        return keep

    patch.setattr(StageManager, "trim", trim)


def plan_outlives_its_request(patch: Patch) -> None:
    patch.delattr(scheduling.StagedScheduling, "_free_request")


def prefill_gets_too_little(patch: Patch) -> None:
    patch.setattr(
        StageManager, "slots", lambda self, _, plan, n: n - plan.decode_dropped[self.stage]
    )


def nothing_is_moved(patch: Patch) -> None:
    patch.setattr(StagedRunner, "_compact_slots", lambda self, geometry, stage: [])


def capacity_is_overstated(patch: Patch) -> None:
    stock = StagedCacheManager._capacity
    patch.setattr(StagedCacheManager, "_capacity", lambda self, name, n: stock(self, name, n) + 1)


LOST = "lost"  # by the worker that reads it, or by the step that is about to write to it
MISTAKES: list[tuple[Callable[[Patch], None], str | None]] = [
    (trim_without_steps_in_flight, LOST),
    (trim_too_early, None),
    (worker_does_not_trim, None),
    (buffer_is_ignored, "lost rows|without rows|has no block"),
    (pruned_prefix_is_shared, "others can find"),
    (nothing_is_trimmed, "group"),
    (tail_is_freed_twice, None),
    (plan_outlives_its_request, None),
    (prefill_gets_too_little, "has no block"),
    (buffer_rows_overlap, "lost rows"),
    (nothing_is_moved, LOST),
    (capacity_is_overstated, None),
]


@pytest.mark.parametrize(("mistake", "says"), MISTAKES, ids=[m.__name__ for m, _ in MISTAKES])
def test_mistake_is_noticed(mistake: Any, says: str | None, monkeypatch: Patch) -> None:
    mistake(monkeypatch)
    with pytest.raises(AssertionError, match=says):
        live_through(8)


def live_through(engines: int) -> None:
    for seed in range(engines):
        rng = random.Random(seed)
        drive = Drive(pick_settings(rng.randint, ahead=True))
        for _ in range(200):
            run_event(drive, rng.randint, crowd=10)
        finish(drive)


def at_block_end(drive: Drive) -> str:
    """A prompt of 8 text tokens and a clip, two blocks in deep stages: decoding needs a third."""
    name = drive.arrive(PromptSpec((4, 4), (0,), ((3,), 0.76, 0.0), answer=6))
    drive.arrive(PromptSpec((20,), answer=6))
    return name


@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_trim_counts_the_decode_in_flight(ahead: bool, monkeypatch: Patch) -> None:
    """When the prefill is processed, the first decoded token is already being written.

    Only scheduling ahead has such a step, so only there the mistake is one.
    """
    drive = Drive(Settings(ahead=ahead))
    at_block_end(drive)
    finish(drive)
    trim_without_steps_in_flight(monkeypatch)
    drive = Drive(Settings(ahead=ahead))
    name = at_block_end(drive)
    schedule(drive)
    if not ahead:
        finish(drive)
        return
    schedule(drive)
    assert [len(m.req_to_blocks[name]) for m in drive.managers] == [9, 8, 8, 8]
    deliver(drive)
    drive.scheduler.schedule()
    with pytest.raises(AssertionError, match=f"{name} writes to .* which it lost"):
        check_nothing_in_flight_is_taken_back(drive)
