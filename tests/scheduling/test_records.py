"""Turns of conversations: what a prompt finds of another one holds what it must, in every stage."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from metok_vllm.engine.kv_cache.cache_manager import StagedCacheManager
from metok_vllm.engine.kv_cache.evictor import StageManager
from metok_vllm.engine.kv_cache.records import CorePrompt, Record
from metok_vllm.engine.request_tables import RequestTables
from metok_vllm.engine.scheduler import StagedScheduling
from tests.scheduling.arrivals import PromptSpec
from tests.scheduling.drive import Drive
from tests.scheduling.runs import finish, run_event
from tests.scheduling.settings import Settings, pick_settings

Patch = pytest.MonkeyPatch


def settings_of(rng: random.Random, ahead: bool) -> Settings:
    """A pool in which some conversations stay, and requests still get into each other's way."""
    settings = pick_settings(rng.randint, ahead)
    groups = settings.layout.num_groups
    return replace(settings, caching=True, spare=groups * rng.randint(0, 40), running=8)


def live_through(engines: int, events: int, ahead: bool) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in range(engines):
        rng = random.Random(seed)
        drive = Drive(settings_of(rng, ahead))
        for _ in range(events):
            run_event(drive, rng.randint, crowd=10, turns=90)
        finish(drive)
        counts += drive.counts
    return counts


@pytest.mark.parametrize("ahead", [False, True], ids=["sync", "async"])
def test_conversations_go_on(ahead: bool) -> None:
    counts = live_through(5, 250, ahead)
    for trouble, least in {"found": 40, "found again": 2, "preempted": 8, "chunked": 20}.items():
        assert counts[trouble] >= least, f"{trouble}: {counts}"


def test_a_prompt_that_only_fits_without_a_record() -> None:
    """The pool has room for the longest request, and not for two copies of its last blocks."""
    drive = Drive(Settings(caching=True, batched=128))
    long = PromptSpec((0, 102), (0,), ((3,), 0.76, 1.0), 2, focus="conversation", asked=2)
    for _ in range(2):
        name = drive.arrive(long)
        finish(drive)
    assert not drive.lives[name].found
    short = replace(long, texts=(0, 40))
    for _ in range(2):
        name = drive.arrive(short)
        finish(drive)
    assert drive.lives[name].found == 63


def partial_block_is_shared(patch: Patch) -> None:
    patch.setattr(StageManager, "_has_partial_local_hit", lambda self, blocks, tokens: False)


def head_is_cut_too_far(patch: Patch) -> None:
    stock = StageManager.cut_head

    def cut(self: Any, name: str) -> Any:
        head = stock(self, name)
        if head:
            self.block_pool.free_blocks([self.req_to_blocks[name].pop(0)])
        return head

    patch.setattr(StageManager, "cut_head", cut)


def worker_keeps_the_head(patch: Patch) -> None:
    patch.setattr(RequestTables, "cut_heads", lambda self: None)


def marks_are_not_read(patch: Patch) -> None:
    patch.setattr(Record, "is_valid", True)


def recorded_before_it_ran(patch: Patch) -> None:
    stock = StagedCacheManager.allocate_slots

    def allocate(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        blocks = stock(self, request, *args, **kwargs)
        name = request.request_id
        if blocks is not None and name in self.evictor_state.prompts:
            computed, request.num_computed_tokens = request.num_computed_tokens, 1 << 20
            self.keep_record(request)
            request.num_computed_tokens = computed
        return blocks

    patch.setattr(StagedCacheManager, "allocate_slots", allocate)


def one_token_too_many(patch: Patch) -> None:
    stock = CorePrompt.common
    patch.setattr(CorePrompt, "common", lambda self, other: stock(self, other) + 1)


def key_without(*names: str) -> Callable[[Patch], None]:
    """The key of a core lacks attributes of the request."""

    def mistake(patch: Patch) -> None:
        stock: Any = vars(CorePrompt)["of"].__func__

        def of(cls: Any, request: Any, plan: Any) -> Any:
            values = {name: None for name in names if name != "question"}
            fake = SimpleNamespace(**{**vars(request), **values})
            found = stock(cls, fake, plan)
            if found is not None and "question" in names:
                found = replace(found, key=repr(plan.core).encode().ljust(32))
            return found

        patch.setattr(CorePrompt, "of", classmethod(of))

    mistake.__name__ = f"key_without_{'_'.join(names)}"
    return mistake


def features_are_not_sent_again(patch: Patch) -> None:
    patch.setattr(StagedScheduling, "_features_again", lambda self, output: {})


MISTAKES: list[tuple[Callable[[Patch], None], str | None]] = [
    (partial_block_is_shared, "lost"),
    (head_is_cut_too_far, None),
    (worker_keeps_the_head, None),
    (marks_are_not_read, None),
    (recorded_before_it_ran, None),
    (one_token_too_many, None),
    (key_without("cache_salt"), "lost"),
    (key_without("question"), "lost"),
    (features_are_not_sent_again, "without data"),
]


@pytest.mark.parametrize(("mistake", "says"), MISTAKES, ids=[m.__name__ for m, _ in MISTAKES])
def test_mistake_is_noticed(mistake: Any, says: str | None, monkeypatch: Patch) -> None:
    mistake(monkeypatch)
    with pytest.raises((AssertionError, ValueError), match=says):
        live_through(8, 250, ahead=True)
