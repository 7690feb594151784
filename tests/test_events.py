"""Events, key events and stride classes, against the naive reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from metok_vllm import events
from metok_vllm.config import METokConfig
from metok_vllm.events import (
    EventMap,
    adjacent_cosine,
    analyse,
    budgeted_classes,
    event_deviation,
    event_maximum,
    key_events,
    segment,
)
from metok_vllm.plan.tokens import FrameBudget, frame_budget
from tests.reference import stage1
from tests.reference.strategies import (
    Rule,
    bounded,
    event_counts,
    event_of_frames,
    four_hot,
    frame_counts,
    rules,
    scores,
)


def natural_classes(
    event_T: torch.Tensor, relevance_T: torch.Tensor, config: METokConfig
) -> torch.Tensor:
    """Key events and stride classes as `analyse` chooses them, of events that a test cut."""
    relevance_E = event_maximum(event_T, relevance_T, int(event_T[-1]) + 1)
    key_E = key_events(relevance_E, config.key_event_ratio)
    return events.natural_classes(event_T, relevance_T, key_E, config.key_frames_per_event)


def config_of(rule: Rule) -> METokConfig:
    return METokConfig(
        num_events=rule.num_events,
        key_event_ratio=rule.ratio,
        key_frames_per_event=rule.per_event,
    )


def random_features(frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, 6, generator=generator) + 0.5


def test_cuts_worked_by_hand() -> None:
    cosine = torch.tensor([0.9, 0.1, 0.5, 0.1, 0.1])
    assert segment(cosine, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert segment(cosine, 1).tolist() == [0] * 6
    assert segment(cosine, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_classes_worked_by_hand() -> None:
    # Event 1 is the most relevant, events 0 and 2 tie and the earlier is the second key event.
    event = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    relevance = torch.tensor([0.3, 0.5, 0.5, 0.1, 0.9, 0.2, 0.5, 0.5])
    config = METokConfig(key_event_ratio=0.6, key_frames_per_event=1)
    natural = natural_classes(event, relevance, config)
    assert natural.tolist() == [1, 0, 1, 1, 0, 1, 1, 2]
    # One fine frame: the most relevant. Two medium: the other fine one, then the best medium one.
    assert budgeted_classes(natural, relevance, FrameBudget(1, 2, 5)).tolist() == [
        2, 1, 1, 2, 0, 2, 2, 2,
    ]  # fmt: skip


def test_share_of_key_frames_follows_each_event() -> None:
    event = torch.tensor([0] * 10 + [1] * 3)
    relevance = torch.linspace(1, 0, 13)
    config = METokConfig(key_event_ratio=1.0, key_frames_per_event=0.3)
    # ceil(0.3 * 10) = 3 and ceil(0.3 * 3) = 1 key frames.
    assert natural_classes(event, relevance, config).tolist() == [0] * 3 + [1] * 7 + [0, 1, 1]


@bounded
@given(st.data(), frame_counts, event_counts)
def test_events_equal_the_reference(data: st.DataObject, frames: int, num_events: int) -> None:
    cosines = data.draw(scores(frames - 1))
    event = segment(torch.tensor(cosines, dtype=torch.float32), num_events)
    assert event.dtype == torch.int64
    assert event.tolist() == stage1.event_of_frames(cosines, num_events)


@bounded
@given(st.data(), frame_counts, event_counts)
def test_there_are_as_many_events_as_asked_for(
    data: st.DataObject, frames: int, num_events: int
) -> None:
    cosine = torch.tensor(data.draw(scores(frames - 1)), dtype=torch.float32)
    event = segment(cosine, num_events).tolist()
    assert event == sorted(event)
    assert set(event) == set(range(min(num_events, frames)))


@bounded
@given(st.data(), frame_counts, rules)
def test_natural_classes_equal_the_reference(data: st.DataObject, frames: int, rule: Rule) -> None:
    event_of = data.draw(event_of_frames(frames))
    relevance = data.draw(scores(frames))
    natural = natural_classes(torch.tensor(event_of), torch.tensor(relevance), config_of(rule))
    assert natural.tolist() == stage1.natural_classes(
        event_of, relevance, rule.ratio, rule.per_event
    )


@bounded
@given(st.data(), frame_counts)
def test_budgeted_classes_equal_the_reference(data: st.DataObject, frames: int) -> None:
    natural = data.draw(st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    relevance = data.draw(scores(frames))
    fine = data.draw(st.integers(0, frames))
    medium = data.draw(st.integers(0, frames - fine))
    budget = FrameBudget(fine, medium, frames - fine - medium)
    classes = budgeted_classes(torch.tensor(natural), torch.tensor(relevance), budget)
    assert classes.tolist() == stage1.budgeted_classes(natural, relevance, fine, medium)
    assert [classes.tolist().count(c) for c in range(3)] == [fine, medium, budget.coarse]


@bounded
@given(st.data(), st.integers(1, 12), st.integers(1, 12), rules)
def test_both_rules_agree_where_the_natural_counts_are_the_budget(
    data: st.DataObject, num_events: int, length: int, rule: Rule
) -> None:
    # Equally long events are what the budget assumes, so its counts must be the natural ones.
    frames = num_events * length
    event_of = [frame // length for frame in range(frames)]
    relevance = torch.tensor(data.draw(scores(frames)))
    natural = natural_classes(torch.tensor(event_of), relevance, config_of(rule))
    budget = frame_budget(frames, num_events, rule.ratio, rule.per_event)
    counts = [natural.tolist().count(c) for c in range(3)]
    assert counts == [budget.fine, budget.medium, budget.coarse]
    assert budgeted_classes(natural, relevance, budget).tolist() == natural.tolist()


@bounded
@given(st.data(), frame_counts, rules)
def test_budget_of_the_natural_counts_changes_nothing(
    data: st.DataObject, frames: int, rule: Rule
) -> None:
    event_of = torch.tensor(data.draw(event_of_frames(frames)))
    relevance = torch.tensor(data.draw(scores(frames)))
    natural = natural_classes(event_of, relevance, config_of(rule))
    counts = [natural.tolist().count(c) for c in range(3)]
    assert budgeted_classes(natural, relevance, FrameBudget(*counts)).tolist() == natural.tolist()


@bounded
@given(st.data(), frame_counts, rules)
def test_analyse_equals_the_reference_with_ties(
    data: st.DataObject, frames: int, rule: Rule
) -> None:
    features = data.draw(four_hot(frames))
    relevance = data.draw(scores(frames))
    result = analyse(torch.tensor(features), torch.tensor(relevance), config_of(rule))

    event_of = stage1.event_of_frames(stage1.adjacent_cosines(features), rule.num_events)
    natural = stage1.natural_classes(event_of, relevance, rule.ratio, rule.per_event)
    fine, medium, _ = stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event)
    assert result.event_T.tolist() == event_of
    assert result.natural_T.tolist() == natural
    assert result.class_T.tolist() == stage1.budgeted_classes(natural, relevance, fine, medium)
    assert result.relevance_T.tolist() == relevance
    assert result.event_relevance_E.tolist() == stage1.event_relevances(event_of, relevance)
    key = stage1.key_events(event_of, relevance, rule.ratio)
    assert result.key_E.tolist() == [event in key for event in range(len(set(event_of)))]


@bounded
@given(frame_counts, rules, st.integers(0, 2**31))
def test_analyse_without_alignment_equals_the_reference(frames: int, rule: Rule, seed: int) -> None:
    feature_TD = random_features(frames, seed)
    features = feature_TD.tolist()
    cosines = stage1.adjacent_cosines(features)
    event_of = stage1.event_of_frames(cosines, rule.num_events)
    relevance = stage1.fallback_relevance(features, event_of)
    # Float32 cannot order what lies closer than its rounding; one-frame events are all exactly 0.
    assume(smallest_gap(cosines) > 1e-5)
    assume(smallest_gap(relevance) > 1e-5)

    result = analyse(feature_TD, None, config_of(rule))
    natural = stage1.natural_classes(event_of, relevance, rule.ratio, rule.per_event)
    fine, medium, _ = stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event)
    assert result.event_T.tolist() == event_of
    assert result.class_T.tolist() == stage1.budgeted_classes(natural, relevance, fine, medium)
    assert result.natural_T.tolist() == natural
    torch.testing.assert_close(result.relevance_T, torch.tensor(relevance), atol=1e-5, rtol=0)


def smallest_gap(values: list[float]) -> float:
    ordered = sorted(values)
    return min((b - a for a, b in pairwise(ordered)), default=1.0)


@bounded
@given(st.data(), frame_counts, st.integers(0, 2**31))
def test_fallback_is_the_distance_from_the_events_mean(
    data: st.DataObject, frames: int, seed: int
) -> None:
    event_of = data.draw(event_of_frames(frames))
    feature_TD = random_features(frames, seed)
    expected = stage1.fallback_relevance(feature_TD.tolist(), event_of)
    deviation = event_deviation(feature_TD, torch.tensor(event_of))
    torch.testing.assert_close(deviation, torch.tensor(expected), atol=1e-5, rtol=0)


@bounded
@given(frame_counts, st.integers(0, 2**31))
def test_cosines_of_neighbours(frames: int, seed: int) -> None:
    feature_TD = random_features(frames, seed)
    feature_TD[frames // 2] = 0.0
    expected = torch.tensor(stage1.adjacent_cosines(feature_TD.tolist()))
    cosine = adjacent_cosine(feature_TD)
    assert cosine.shape == (frames - 1,)
    torch.testing.assert_close(cosine, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 5, 7, 32, 129])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_a_video_of_equal_frames_is_cut_and_ranked_by_time(
    frames: int, aligned: bool, seed: int
) -> None:
    # Rounding must not decide: a frame is as far from the mean of its equals as any other.
    feature_1D = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
    relevance = torch.full((frames,), 0.25) if aligned else None
    result = analyse(feature_1D.repeat(frames, 1), relevance, METokConfig())

    events = min(5, frames)
    assert result.event_T.tolist() == [min(frame, events - 1) for frame in range(frames)]
    assert_ranked_by_time(result)


@pytest.mark.parametrize("frames", [1, 2, 5, 7])
def test_one_frame_events_without_alignment_are_ranked_by_time(frames: int) -> None:
    # A frame that is its event's mean differs from it by nothing, whatever rounding says.
    result = analyse(random_features(frames, seed=frames), None, METokConfig(num_events=8))
    assert result.event_T.tolist() == list(range(frames))
    assert_ranked_by_time(result)


def assert_ranked_by_time(result: EventMap) -> None:
    """With nothing to choose between frames and events, the earlier come first."""
    event_of = result.event_T.tolist()
    alike = [0.0] * len(event_of)
    key = stage1.key_events(event_of, alike, 0.6)
    assert result.key_E.tolist() == [event in key for event in range(len(result.key_E))]
    natural = stage1.natural_classes(event_of, alike, 0.6, 6)
    assert result.natural_T.tolist() == natural
    fine, medium, _ = stage1.budget(len(event_of), len(result.key_E), 0.6, 6)
    assert result.class_T.tolist() == stage1.budgeted_classes(natural, alike, fine, medium)
