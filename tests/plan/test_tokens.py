"""Counts that are fixed before the pixels are seen, against the naive reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.config import METokConfig
from metok_vllm.plan.tokens import frame_budget, key_event_count
from tests.layouts import square
from tests.reference import stage1
from tests.reference.strategies import (
    Rule,
    bounded,
    configurable_strides,
    frame_counts,
    grids,
    modes,
    rules,
    scores,
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


@bounded
@given(grids, st.integers(1, 9), modes)
def test_pooled_length_is_what_pooling_gives(grid: int, stride: int, mode: str) -> None:
    pooled = stage1.pool_frame(torch.zeros(grid * grid, 2), grid, stride, mode)
    assert square(1, grid, mode).frame_features(stride) == len(pooled)


@bounded
@given(st.data(), frame_counts, rules, grids, configurable_strides, modes)
def test_encoded_tokens_is_the_length_of_the_packed_sequence(
    data: st.DataObject,
    frames: int,
    rule: Rule,
    grid: int,
    strides_: tuple[int, int, int],
    mode: str,
) -> None:
    event_of = stage1.event_of_frames(data.draw(scores(frames - 1)), rule.num_events)
    relevance = data.draw(scores(frames))
    natural = stage1.natural_classes(event_of, relevance, rule.ratio, rule.per_event)
    fine, medium, _ = stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium)
    patches = torch.zeros(frames, grid * grid, 1)
    packed = stage1.pack(patches, classes, event_of, torch.zeros(1), grid, strides_, mode)
    config = METokConfig(
        num_events=rule.num_events,
        key_event_ratio=rule.ratio,
        key_frames_per_event=rule.per_event,
        strides=strides_,
    )
    assert square(frames, grid, mode).encoded_tokens(config) == len(packed.tokens_ND)


@bounded
@given(frame_counts, grids, modes)
def test_dense_is_every_frame_at_stride_2_and_one_newline(
    frames: int, grid: int, mode: str
) -> None:
    patches = torch.zeros(frames, grid * grid, 1)
    one_event = [0] * frames
    packed = stage1.pack(patches, one_event, one_event, torch.zeros(1), grid, (2, 2, 2), mode)
    assert square(frames, grid, mode).dense_tokens() == len(packed.tokens_ND)


def test_known_sizes_of_the_published_models() -> None:
    # LLaVA-OneVision: 27 x 27 patches, 196 tokens a frame.
    assert square(32, 27).dense_tokens() == 32 * 196 + 1
    assert square(32, 27).encoded_tokens(METokConfig()) == 18 * 196 + 13 * 49 + 1 * 16 + 5
    # LongVA: 24 x 24 patches, average pooling, 144 tokens a frame.
    assert square(64, 24, "average").dense_tokens() == 64 * 144 + 1
