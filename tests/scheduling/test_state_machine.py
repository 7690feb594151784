"""Hypothesis searches for the shortest sequence of events that breaks an invariant."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.scheduling.arrivals import pick_spec, pick_turn
from tests.scheduling.drive import Drive
from tests.scheduling.invariants import check
from tests.scheduling.runs import deliver, finish, schedule
from tests.scheduling.settings import Pick, pick_settings

CROWD = 8


def picking(data: Any) -> Pick:
    """Hypothesis as a source of integers."""

    def pick(low: int, high: int) -> int:
        number: int = data.draw(st.integers(low, high))
        return number

    return pick


class Engine(RuleBasedStateMachine):
    """Arrivals, aborts, resets, steps ahead and their outputs, in any order."""

    drive: Drive

    @initialize(data=st.data(), ahead=st.booleans())
    def start(self, data: Any, ahead: bool) -> None:
        self.drive = Drive(pick_settings(picking(data), ahead))

    @precondition(lambda self: len(self.drive.alive) < CROWD)
    @rule(data=st.data())
    def arrive(self, data: Any) -> None:
        self.drive.arrive(pick_spec(picking(data)))

    @precondition(lambda self: len(self.drive.alive) < CROWD)
    @rule(data=st.data())
    def go_on(self, data: Any) -> None:
        self.drive.arrive(pick_turn(picking(data)))

    @precondition(lambda self: self.drive.alive)
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        self.drive.abort(data.draw(st.sampled_from(self.drive.alive)))
        check(self.drive)

    @rule()
    def forget_prefixes(self) -> None:
        self.drive.forget_prefixes()
        check(self.drive)

    @precondition(lambda self: len(self.drive.in_flight) < self.drive.settings.depth)
    @rule()
    def schedule(self) -> None:
        schedule(self.drive)

    @precondition(lambda self: self.drive.in_flight)
    @rule()
    def deliver(self) -> None:
        deliver(self.drive)

    @precondition(lambda self: self.drive.alive)
    @rule(steps=st.integers(2, 12))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            schedule(self.drive)
            deliver(self.drive)

    def teardown(self) -> None:
        if hasattr(self, "drive"):
            finish(self.drive)


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
