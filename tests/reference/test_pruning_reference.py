"""Plans, quotas and selections of the reference, against numbers worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference import pruning, stage1
from tests.reference.strategies import (
    Rule,
    bounded,
    frame_counts,
    grids,
    rules,
    scores,
    shares,
    strides,
)

WHOLE, HALF, NONE = Fraction(1), Fraction(1, 2), Fraction(0)
STRIDES = (2, 4, 8)


@pytest.mark.parametrize(
    ("frames", "encoded", "events", "alpha", "per_event", "grid", "keep", "expected"),
    [
        # Two events of 2 frames: the key event has 4 + 1 + 1 tokens, the other 1 + 1 + 1.
        (4, 9, 2, 0.5, 1, 4, 0.5, (9, 4, 2, 0)),
        (4, 18, 2, 0.5, 1, 4, 0.5, (18, 8, 3, 0)),
        # Five events of 6.4 frames: 6 * 49 + 0.4 * 16 + 1 = 301.4 and 6 * 16 + 0.4 * 4 + 1 = 98.6,
        # so Kt = 1099 * 904.2 / 1101.4 = 902.23 and Nt = 196.77.
        (32, 1099, 5, 0.6, 6, 14, 0.76, (1099, 761, 522, 0)),
        # The same with ceil(0.5 * 6.4) = 4 key frames: 235.4 and 74.6; Kt = 704.22, Nt = 148.78.
        (32, 853, 5, 0.6, 0.5, 14, 0.76, (853, 592, 407, 0)),
        # More key frames wanted than an event has: 2 * 4 + 1 and 2 * 1 + 1.
        (4, 12, 2, 0.5, 9, 4, 1.0, (12, 11, 9, 0)),
        # K = min(5, 2), and both events are key events.
        (2, 100, 5, 0.6, 6, 14, 0.5, (100, 50, 25, 0)),
        # One event. In binary floats 0.07 * 100 is a little more than 7.
        (9, 100, 1, 0.6, 6, 14, 0.07, (100, 7, 1, 0)),
    ],
)
def test_planned_tokens_by_hand(
    frames: int,
    encoded: int,
    events: int,
    alpha: float,
    per_event: int | float,
    grid: int,
    keep: float,
    expected: tuple[int, ...],
) -> None:
    plan = pruning.planned_tokens(
        frames, encoded, events, alpha, per_event, STRIDES, grid, keep, stage1=True
    )
    assert plan == expected


def test_without_stage_1_key_events_have_their_share_of_the_tokens() -> None:
    # Kt = 101 * 3/5 = 60.6 and Nt = 40.4: M0 = ceil(30.3 + 10.1), M1 = ceil(15.15).
    plan = pruning.planned_tokens(10, 101, 5, 0.6, 6, STRIDES, 14, 0.5, stage1=False)
    assert plan == (101, 41, 16, 0)


def test_separators_are_added_to_the_plan_of_the_others() -> None:
    # Kt = 60.6 and Nt = 40.4 of 101 tokens that may be dropped, as above.
    plan = pruning.planned_tokens(10, 108, 5, 0.6, 6, STRIDES, 14, 0.5, stage1=False, separators=7)
    assert plan == (108, 48, 23, 7)


@bounded
@given(frame_counts, rules, strides, grids, shares, st.booleans(), st.integers(0, 3000))
def test_plans_never_grow(
    frames: int,
    rule: Rule,
    strides_: tuple[int, int, int],
    grid: int,
    keep: float,
    stage1_runs: bool,
    encoded: int,
) -> None:
    plan = pruning.planned_tokens(
        frames,
        encoded,
        rule.num_events,
        rule.ratio,
        rule.per_event,
        strides_,
        grid,
        keep,
        stage1_runs,
    )
    assert plan[0] == encoded
    assert plan[3] == 0
    assert 0 <= plan[2] <= plan[1] <= plan[0]
    bound = math.ceil(stage1.exact(keep) * encoded)
    assert plan[1] <= bound
    events = min(rule.num_events, frames)
    if stage1.key_event_count(events, rule.ratio) == events:
        assert plan[1] == bound


@pytest.mark.parametrize(
    ("total", "sizes", "weights", "relevance", "expected"),
    [
        # Quotas 3.5, 1.4, 2.1: the seat goes to the largest remainder.
        (7, [5, 4, 3], [WHOLE, HALF, WHOLE], [0.1, 0.2, 0.3], [4, 1, 2]),
        # Equal remainders: the earlier event, whatever its relevance.
        (3, [3, 3], [WHOLE, WHOLE], [0.1, 0.9], [2, 1]),
        # Quotas 3, 4.5, 4.5 become 3, 5, 4; the first holds 2, and one token is left over.
        (12, [2, 6, 6], [WHOLE, HALF, HALF], [0.1, 0.2, 0.9], [2, 5, 5]),
        (12, [2, 6, 6], [WHOLE, HALF, HALF], [0.1, 0.9, 0.2], [2, 6, 4]),
        # Quotas 32/7 and 24/7: the capped event is the one with the seat.
        (8, [4, 6], [WHOLE, HALF], [0.9, 0.1], [4, 4]),
        # More than all key events hold: the rest goes to what is not key.
        (4, [2, 3], [WHOLE, NONE], [0.9, 0.1], [2, 2]),
        # Nothing weighs anything: the most relevant first, equal ones in time.
        (5, [3, 2, 4], [NONE, NONE, NONE], [0.1, 0.5, 0.3], [0, 2, 3]),
        (5, [3, 2, 4], [NONE, NONE, NONE], [0.1, 0.1, 0.1], [3, 2, 0]),
        (2, [0, 3], [WHOLE, NONE], [0.9, 0.1], [0, 2]),
        (0, [3, 3], [WHOLE, HALF], [0.9, 0.1], [0, 0]),
        (6, [3, 3], [WHOLE, HALF], [0.9, 0.1], [3, 3]),
        (0, [], [], [], []),
    ],
)
def test_share_out_by_hand(
    total: int,
    sizes: list[int],
    weights: list[Fraction],
    relevance: list[float],
    expected: list[int],
) -> None:
    assert pruning.share_out(total, sizes, weights, relevance) == expected


def test_weights_of_the_two_pruning_layers() -> None:
    assert pruning.quota_weights([True, False], 0) == [1, Fraction(1, 2)]
    assert pruning.quota_weights([True, False], 1) == [1, 0]


@st.composite
def shares_to_give(
    draw: st.DrawFn,
) -> tuple[int, list[int], list[Fraction], list[float]]:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=8))
    weights = draw(
        st.lists(st.sampled_from([WHOLE, HALF, NONE]), min_size=len(sizes), max_size=len(sizes))
    )
    return draw(st.integers(0, sum(sizes))), sizes, weights, draw(scores(len(sizes)))


@bounded
@given(shares_to_give())
def test_shares_add_up_and_fit(
    given_: tuple[int, list[int], list[Fraction], list[float]],
) -> None:
    total, sizes, weights, relevance = given_
    counts = pruning.share_out(total, sizes, weights, relevance)
    assert sum(counts) == total
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))


@bounded
@given(shares_to_give())
def test_shares_are_proportional_while_nothing_is_full(
    given_: tuple[int, list[int], list[Fraction], list[float]],
) -> None:
    total, sizes, weights, relevance = given_
    parts = [weight * size for weight, size in zip(weights, sizes, strict=True)]
    assume(sum(parts) > 0 and total <= sum(parts))
    counts = pruning.share_out(total, sizes, weights, relevance)
    for count, part in zip(counts, parts, strict=True):
        assert abs(count - total * part / sum(parts)) < 1


def test_selection_by_hand() -> None:
    values = [0.5, 0.1, 0.4, 0.9, 0.3, 0.6, 0.7]
    events = [0, 0, 0, 1, 1, 1, 2]
    # Event 0 keeps 0.5 and not 0.4, event 1 keeps 0.9 and 0.6 and not 0.3, event 2 nothing.
    selection = pruning.select(values, events, [1, 2, 0])
    assert selection.kept == [0, 3, 5]
    assert selection.margin == pytest.approx(0.1)


def test_ties_go_to_the_earlier_token_and_leave_no_margin() -> None:
    selection = pruning.select([0.2, 0.2, 0.5, 0.5, 0.5], [0, 0, 1, 1, 1], [1, 2])
    assert selection == pruning.Selection([0, 2, 3], 0.0)
    assert pruning.select([0.2, 0.2], [0, 0], [2]) == pruning.Selection([0, 1], math.inf)


@bounded
@given(st.data())
def test_kept_tokens_are_those_with_the_highest_scores(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    values = data.draw(scores(count))
    events = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    counts = [data.draw(st.integers(0, events.count(event))) for event in range(4)]
    selection = pruning.select(values, events, counts)
    assert selection.kept == sorted(set(selection.kept))
    gaps = []
    for event in range(4):
        mine = [token for token in range(count) if events[token] == event]
        kept = [token for token in mine if token in selection.kept]
        dropped = [token for token in mine if token not in selection.kept]
        assert len(kept) == counts[event]
        gaps += [values[k] - values[d] for k in kept for d in dropped]
        assert all(k < d for k in kept for d in dropped if values[k] == values[d])
    assert selection.margin == min(gaps, default=math.inf)
    assert selection.margin >= 0


def test_separators_stay_whatever_their_score() -> None:
    scores = [0.0, 0.5, 0.1, 0.4, 0.9, 0.3, 0.0]
    video = ([0, 0, 0, 0, 1, 1, 1], [True, False], [0.5, 0.1])
    # Tokens 0 and 6 are separators: of 3 and 2 others, quotas 3 * 3/4 and 3 * 1/4 give 2 and 1.
    assert pruning.staying(0, 5, scores, *video, [0, 6]).kept == [0, 1, 3, 4, 6]
    # At the second layer the other event keeps its separator alone.
    assert pruning.staying(1, 4, scores, *video, [0, 6]).kept == [0, 1, 3, 6]
    assert pruning.staying(2, 2, scores, *video, [0, 6]).kept == [0, 6]
    assert pruning.decode_kept(scores, 2, [0, 6]).kept == [0, 1, 4, 6]


def test_decoding_keeps_the_best_of_the_whole_video() -> None:
    values = [0.1, 0.7, 0.3, 0.6, 0.2, 0.6, 0.5]
    # Three are 0.7 and the two 0.6; two have to break their tie.
    best = pruning.decode_kept(values, 3)
    assert best.kept == [1, 3, 5]
    assert best.margin == pytest.approx(0.1)
    assert pruning.decode_kept(values, 2) == pruning.Selection([1, 3], 0.0)
    assert pruning.decode_kept(values, 0).kept == []
    assert pruning.decode_kept(values, 7).kept == list(range(7))
    assert pruning.decode_kept([], 0).kept == []


def test_how_many_tokens_decoding_keeps() -> None:
    # ceil(0.3 * 7) = 3 and ceil(0.07 * 100) = 7; as a float, 0.07 * 100 is over 7.
    assert pruning.held_counts([7, 100, 0], 0.3) == [3, 30, 0]
    assert pruning.held_counts([100], 0.07) == [7]
    # Of 107, 74 would go: 8 * 9 do, and the first video keeps two more; 64 take all that it has.
    assert pruning.held_counts([7, 100], 0.3, 8) == [5, 30]
    assert pruning.held_counts([7, 100], 0.3, 64) == [7, 36]
