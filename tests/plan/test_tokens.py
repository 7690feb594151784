"""Counts that are fixed before the pixels are seen, against the naive reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.plan.tokens import frame_budget, key_event_count
from tests.reference import stage1
from tests.reference.strategies import (
    Rule,
    bounded,
    frame_counts,
    rules,
)


@pytest.mark.parametrize(
    ("ratio", "events", "expected"),
    [
        (0.6, 5, 3),
        (0.7, 10, 7),
        (0.07, 100, 7),
        (0.28, 25, 7),
        (0.61, 5, 4),
        (0.01, 1, 1),
        (1, 5, 5),
    ],
)
def test_key_events_are_counted_with_the_decimals_users_write(
    ratio: float, events: int, expected: int
) -> None:
    assert key_event_count(events, ratio) == expected


@pytest.mark.parametrize(
    ("frames", "rule", "expected"),
    [
        (32, Rule(5, 0.6, 6), (18, 13, 1)),
        (129, Rule(5, 0.6, 6), (18, 71, 40)),
        # A share of an event of 25.8 frames: ceil(12.9) = 13 of them are key frames.
        (129, Rule(5, 0.6, 0.5), (39, 64, 26)),
        # Events of 2.5 frames: halves are rounded up, and the second is capped at what is left.
        (5, Rule(2, 0.5, 6), (3, 2, 0)),
        # 5 of 10 frames exactly, where 0.5 * 10 in floats plus a careless ceil would give 6.
        (10, Rule(1, 1.0, 0.5), (5, 5, 0)),
        (1, Rule(5, 0.6, 6), (1, 0, 0)),
        (2, Rule(5, 0.5, 6), (1, 1, 0)),
    ],
)
def test_budget_worked_by_hand(frames: int, rule: Rule, expected: tuple[int, int, int]) -> None:
    budget = frame_budget(frames, rule.num_events, rule.ratio, rule.per_event)
    assert (budget.fine, budget.medium, budget.coarse) == expected
    assert stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event) == expected


@bounded
@given(frame_counts | st.integers(1, 1000), rules)
def test_budget_equals_the_reference(frames: int, rule: Rule) -> None:
    budget = frame_budget(frames, rule.num_events, rule.ratio, rule.per_event)
    expected = stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event)
    assert (budget.fine, budget.medium, budget.coarse) == expected


@bounded
@given(frame_counts | st.integers(1, 1000), rules)
def test_budget_hands_out_every_frame_once(frames: int, rule: Rule) -> None:
    budget = frame_budget(frames, rule.num_events, rule.ratio, rule.per_event)
    assert budget.fine + budget.medium + budget.coarse == frames
    assert min(budget.fine, budget.medium, budget.coarse) >= 0
