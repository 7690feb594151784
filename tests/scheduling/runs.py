"""Random events, and running an engine until it is empty within a bounded number of steps."""

from __future__ import annotations

from tests.scheduling.arrivals import pick_spec, pick_turn
from tests.scheduling.drive import Drive
from tests.scheduling.invariants import check, check_after_schedule, check_empty
from tests.scheduling.settings import Pick


def schedule(drive: Drive) -> None:
    """Schedule one more step, if one more may be in flight."""
    if len(drive.in_flight) < drive.settings.depth:
        check_after_schedule(drive, drive.schedule())


def deliver(drive: Drive) -> None:
    """Deliver the oldest step, if there is one."""
    if drive.in_flight:
        drive.deliver()
        check(drive)


def run_event(drive: Drive, pick: Pick, crowd: int, turns: int = 30) -> None:
    """Any one thing that can happen to an engine with at most `crowd` requests, of which `turns` in
    a hundred are turns of conversations."""
    event = pick(0, 99)
    if event < 25:
        if len(drive.alive) < crowd:
            drive.arrive((pick_turn if pick(0, 99) < turns else pick_spec)(pick))
    elif event < 29:
        if drive.alive:
            drive.abort(drive.alive[pick(0, len(drive.alive) - 1)])
    elif event == 29:
        if pick(0, 99) >= turns:
            drive.forget_prefixes()
    elif event < 65:
        schedule(drive)
    else:
        deliver(drive)
    check(drive)


def steps_to_finish(drive: Drive) -> int:
    """Steps after which every request has finished if no more arrive.

    The oldest running request is never preempted and gets a step's tokens first. Alone it needs a
    step per chunk of its prompt, two more per clip (each may end two chunks), one for the answer so
    far after a preemption, and one per token. It waits only while another request's chunk holds the
    encoder cache, and that request then advances: twice the sum over all requests. Each step may
    wait for those in flight, and the last ones report finished requests to the worker. Under
    priorities every other request may preempt it once.
    """
    size = drive.settings.scheduled or drive.settings.batched
    alone = 0
    for name in drive.alive:
        spec = drive.lives[name].arrival.spec
        alone += -(-spec.prompt_tokens // size) + 2 * len(spec.clips) + 2 + spec.answer
    rounds = len(drive.alive) if drive.settings.priorities else 1
    return 2 * alone * drive.settings.depth * rounds + 2


def finish(drive: Drive) -> None:
    """Run until every request is gone, as EngineCore would; then nothing may be left."""
    bound, begin = steps_to_finish(drive), drive.counts["steps"]
    while drive.alive or drive.in_flight:
        assert drive.counts["steps"] - begin <= bound, f"starved: {drive.alive}"
        flying = len(drive.in_flight)
        schedule(drive)
        if len(drive.in_flight) in (flying, drive.settings.depth):
            deliver(drive)
    schedule(drive)
    check_empty(drive)
