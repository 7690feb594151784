"""Situations that random events reach too seldom, each built by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

from metok_vllm.engine.request_plans import plan_of
from metok_vllm.models.request import FIELD
from tests.scheduling.arrivals import CLIPS, PromptSpec, make_arrival
from tests.scheduling.drive import Drive, Life
from tests.scheduling.invariants import check_waiting_requests_hold_nothing
from tests.scheduling.runs import deliver, finish, schedule, steps_to_finish
from tests.scheduling.settings import Settings

PRUNED: Any = ((2, 3), 0.76, 0.0)
EVICTED: Any = ((3,), 0.76, 0.0)


def step(drive: Drive, times: int = 1) -> None:
    for _ in range(times):
        schedule(drive)
        deliver(drive)


def test_dense_video_whose_prefix_is_cached() -> None:
    """vLLM does not send the worker the data of a video that its prefix cache covers."""
    drive = Drive(Settings(caching=True))
    question = PromptSpec((4, 12), (0,))
    drive.arrive(question)
    finish(drive)
    name = drive.arrive(question)
    step(drive)
    computed = drive.scheduler.requests[name].num_computed_tokens
    assert computed == question.prompt_tokens
    assert len(drive.worker.requests[name].block_ids[0]) == -(-computed // 4)
    finish(drive)


def waiting_for_the_buffer() -> tuple[Drive, str]:
    """Two prompts of 116 tokens in chunks of 64; the buffer has rows for one."""
    drive = Drive(Settings(batched=64, buffer=128))
    long = PromptSpec((60, 4, 4), (0, 0), EVICTED, answer=10)
    drive.arrive(long)
    waits = drive.arrive(replace(long, family=1))
    step(drive)
    drive.arrive(PromptSpec((3,), answer=1))
    drive.schedule()
    drive.deliver()
    assert not drive.lives[waits].scheduled
    return drive, waits


def test_prompt_that_waits_keeps_no_encoder_output() -> None:
    """Other requests can use the encoder cache: it gets each output when it can run."""
    drive, _ = waiting_for_the_buffer()
    check_waiting_requests_hold_nothing(drive)
    finish(drive)


def test_prompt_that_waits_does_not_block_the_one_before_it() -> None:
    """A preempted request stands before it in the queue, and must get its rows back."""
    drive, _ = waiting_for_the_buffer()
    drive.forget_prefixes()
    for _ in range(steps_to_finish(drive)):
        drive.schedule()
        if drive.in_flight:
            drive.deliver()
    assert not drive.alive, "starved"


def test_streaming_session_is_the_same_to_scheduler_and_worker() -> None:
    """What the scheduler leaves alone may be cut anywhere, and the worker must not prune it."""
    drive = Drive(Settings(batched=64))
    drive.arrive(PromptSpec((40,)))
    name = drive.arrive(PromptSpec((4, 8), (0,), PRUNED, resumable=True))
    drive.schedule()
    assert drive.worker.metok_plans.keys() == drive.scheduler.evictor_state.plans.keys()
    drive.deliver()
    drive.abort(name)
    finish(drive)


def test_prompt_longer_than_a_step_is_pruned_at_its_end() -> None:
    """Chunks take blocks of stage 0 alone; the last one those of the kept tokens, then it trims."""
    drive = Drive(Settings(batched=24, layout=Settings().layout))
    name = drive.arrive(PromptSpec((4, 16, 4), (0, 0), PRUNED, answer=10))
    plan = drive.lives[name].plan
    assert plan is not None
    for total in (24, 48, 72):
        step(drive)
        assert drive.lives[name].scheduled[-1] == total
        blocks = [-(-plan.slots(stage, total) // 4) for stage in range(4)]
        assert [len(m.req_to_blocks[name]) for m in drive.managers] == blocks
        assert (blocks[1:] == [0, 0, 0]) is (total < 72)
    step(drive)
    assert [len(m.req_to_blocks[name]) for m in drive.managers] == [19, 7, 7, 7]
    finish(drive)


@pytest.mark.parametrize("pruning", [PRUNED, EVICTED])
def test_separators_hold_their_blocks_in_every_stage(pruning: Any) -> None:
    """They are text, and the last token of a prompt is so in any case."""
    drive = Drive(Settings(batched=110))
    inside = drive.arrive(PromptSpec((5, 20), (0,), pruning, answer=10, separated=True))
    at_end = drive.arrive(PromptSpec((20, 0), (2,), pruning, answer=10, separated=True))
    step(drive, 2)
    # Prompt and one new token; of these, without the 18 and the 6 visual tokens.
    for name, tokens, kept in ((inside, 50, 32), (at_end, 30, 24)):
        held = [len(m.req_to_blocks[name]) for m in drive.managers]
        assert held == [-(-tokens // 4), *[-(-kept // 4)] * 3]
    finish(drive)


def test_prompt_as_long_as_a_step_does_not_hold_up_those_behind_it() -> None:
    """A prompt that needs a whole step to itself would wait for the longest answer in flight."""
    drive = Drive(Settings(batched=64))
    drive.arrive(PromptSpec((5,), answer=60))
    step(drive, 2)
    long = drive.arrive(PromptSpec((4, 36), (0,), PRUNED))
    short = drive.arrive(PromptSpec((3,), answer=1))
    assert drive.scheduler.requests[long].num_prompt_tokens == 64
    step(drive, 4)
    assert short not in drive.alive
    assert drive.scheduler.requests[long].num_output_tokens > 0
    finish(drive)


def test_prompts_share_a_step_up_to_a_number_of_tokens() -> None:
    """Three prompts of 28 tokens: all at once, two and one, each alone where none fits."""
    for shared, began in ((None, [3]), (60, [2, 1]), (27, [1, 1, 1])):
        drive = Drive(Settings(batched=110, shared=shared))
        for _ in range(3):
            drive.arrive(PromptSpec((2, 6), (1,), PRUNED, answer=9))
        seen: list[int] = []
        while len(seen) < len(began):
            before = sum(bool(life.scheduled) for life in drive.lives.values())
            step(drive)
            seen.append(sum(bool(life.scheduled) for life in drive.lives.values()) - before)
        assert seen == began
        finish(drive)


def test_plain_prompts_do_not_wait_for_metok_ones() -> None:
    """A METok prompt that fills its share of a step leaves the rest to those behind it."""
    drive = Drive(Settings(batched=110, shared=20))
    metok = drive.arrive(PromptSpec((2, 6), (1,), PRUNED, answer=9))
    plain = [drive.arrive(PromptSpec((9,))), drive.arrive(PromptSpec((2, 6), (1,)))]
    step(drive)
    assert all(drive.lives[name].scheduled for name in (metok, *plain))
    finish(drive)


WHOLE_FIELD = {
    "key": "k",
    "payload": "{}",
    "key_share": [1, 2],
    "separators": 0,
    "ends_in_separator": False,
    "ends": [],
}


def field_of(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def field_with(**changes: Any) -> torch.Tensor:
    return field_of(json.dumps(WHOLE_FIELD | changes))


BROKEN_FIELDS: dict[str, Any] = {
    "not bytes": torch.tensor([300, -1]),
    "not JSON": field_of("{key"),
    "no object": field_of("[1, 2]"),
    "nothing": field_of("{}"),
    "another version": field_with(payload='{"stages": [9]}'),
    "share of nothing": field_with(key_share=[1, 0]),
    "more than all": field_with(key_share=[9, 1]),
    "ends are no list": field_with(ends=1),
    "key is no text": field_with(key=[1]),
    "separators are no number": field_with(separators="3"),
    "separators below zero": field_with(separators=-1),
    "more separators than tokens": field_with(separators=CLIPS[0] + 1, ends_in_separator=True),
    "separators alone, and another end": field_with(separators=CLIPS[0]),
    "ends in a separator without one": field_with(ends_in_separator=True),
    "deep": field_of("[" * 100_000),
    "no tensor": None,
}


def arrive_with(field: Any, drive: Drive, *, without: bool = False) -> None:
    """A request whose video another renderer prepared; as the engine gets it."""
    arrival = make_arrival(PromptSpec((4, 8), (0,), PRUNED), "odd", drive.settings.block_size)
    (feature,) = arrival.request.mm_features
    elem = MultiModalFieldElem(field, MultiModalBatchedField())
    data = MultiModalKwargsItem({} if without else {FIELD: elem})
    arrival.request.mm_features = [replace(feature, data=data)]
    drive.lives["odd"] = Life(arrival, None)
    drive.contents["odd"], drive.cores["odd"] = arrival.content, None
    drive.scheduler.add_request(arrival.request)


def test_the_field_that_is_broken_below_is_whole() -> None:
    drive = Drive(Settings())
    arrive_with(field_with(), drive)
    assert drive.scheduler.evictor_state.plans


@pytest.mark.parametrize("kind", [*BROKEN_FIELDS, "no field"])
def test_video_of_another_renderer_is_left_alone(kind: str) -> None:
    """Through a rendered request; an exception in the scheduler would end the engine."""
    drive = Drive(Settings())
    arrive_with(BROKEN_FIELDS.get(kind), drive, without=kind == "no field")
    assert not drive.scheduler.evictor_state.plans
    schedule(drive)
    assert not drive.worker.metok_plans
    deliver(drive)
    finish(drive)


@pytest.mark.parametrize("offset", [-1, 1000])
def test_video_outside_its_prompt_is_left_alone(offset: int) -> None:
    feature = make_arrival(PromptSpec((4, 8), (0,), PRUNED), "odd", 4).request.mm_features[0]
    moved = replace(feature, mm_position=replace(feature.mm_position, offset=offset))
    tokens = [0] * 36
    assert plan_of(tokens, [feature], None, 4) is not None
    assert plan_of(tokens, [moved], None, 4) is None
    assert plan_of(tokens, [feature, feature], None, 4) is None, "one inside the other"
