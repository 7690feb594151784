"""Situations that random lives reach too seldom, each built by hand."""

from __future__ import annotations

from typing import Any

from tests.scheduling.asks import Ask
from tests.scheduling.books_check import check_waiting_requests_hold_nothing
from tests.scheduling.drive import Drive
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
    question = Ask((4, 12), (0,))
    drive.arrive(question)
    finish(drive)
    name = drive.arrive(question)
    step(drive)
    computed = drive.scheduler.requests[name].num_computed_tokens
    assert computed == question.prompt_tokens
    assert len(drive.worker.requests[name].block_ids[0]) == -(-computed // 4)
    finish(drive)


def waiting_for_room() -> tuple[Drive, str]:
    """An encoder cache of 64: a running prompt uses 24, the first clip of one that waits stands
    ready in 24, and its second, of 20, finds no room. Before them runs one with clips of 24 and 20,
    which are no longer there."""
    drive = Drive(Settings(batched=64))
    drive.arrive(Ask((4, 4, 4), (0, 1), EVICTED, answer=30))
    step(drive)
    drive.arrive(Ask((4, 4), (0,), PRUNED, answer=1))
    step(drive)
    # Its first chunk ends inside its clip.
    drive.arrive(Ask((45, 2), (0,), answer=30))
    waits = drive.arrive(Ask((0, 0, 4), (0, 1), PRUNED))
    step(drive)
    drive.schedule()
    assert not drive.lives[waits].scheduled
    drive.deliver()
    return drive, waits


def test_prompt_that_waits_keeps_no_encoder_output() -> None:
    """Or others cannot have the room: it is asked again for each output when it can run."""
    drive, _ = waiting_for_room()
    check_waiting_requests_hold_nothing(drive)
    finish(drive)


def test_prompt_that_waits_does_not_block_the_one_before_it() -> None:
    """Whoever was preempted stands before it in the queue, and must get its own clips back."""
    drive, _ = waiting_for_room()
    drive.forget_prefixes()
    for _ in range(steps_to_finish(drive)):
        drive.schedule()
        if drive.in_flight:
            drive.deliver()
    assert not drive.alive, "starved"


def test_streaming_session_is_the_same_to_scheduler_and_worker() -> None:
    """What the scheduler leaves alone may be cut anywhere, and the worker must not prune it."""
    drive = Drive(Settings(batched=64))
    drive.arrive(Ask((40,)))
    name = drive.arrive(Ask((4, 8), (0,), PRUNED, resumable=True))
    drive.schedule()
    assert drive.worker.metok_plans.keys() == drive.scheduler.books.plans.keys()
    drive.deliver()
    drive.abort(name)
    finish(drive)


def test_prompt_longer_than_a_step_is_evicted_at_its_end() -> None:
    """Three chunks, nothing pruned; then one block of text a stage instead of all the video."""
    drive = Drive(Settings(batched=24, layout=Settings().layout))
    name = drive.arrive(Ask((4, 16, 4), (0, 0), PRUNED, answer=10))
    for total in (24, 48, 72):
        step(drive)
        assert drive.lives[name].scheduled[-1] == total
        assert [len(m.req_to_blocks[name]) for m in drive.managers] == [total // 4] * 4
    step(drive)
    assert [len(m.req_to_blocks[name]) for m in drive.managers] == [19, 7, 7, 7]
    finish(drive)


def test_prompt_as_long_as_a_step_does_not_hold_up_those_behind_it() -> None:
    """A prompt that needs a whole step to itself would wait for the longest answer in flight."""
    drive = Drive(Settings(batched=64))
    drive.arrive(Ask((5,), answer=60))
    step(drive, 2)
    long = drive.arrive(Ask((4, 36), (0,), PRUNED))
    short = drive.arrive(Ask((3,), answer=1))
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
            drive.arrive(Ask((2, 6), (1,), PRUNED, answer=9))
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
    metok = drive.arrive(Ask((2, 6), (1,), PRUNED, answer=9))
    plain = [drive.arrive(Ask((9,))), drive.arrive(Ask((2, 6), (1,)))]
    step(drive)
    assert all(drive.lives[name].scheduled for name in (metok, *plain))
    finish(drive)
