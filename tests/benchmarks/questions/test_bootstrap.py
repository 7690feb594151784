"""Intervals over videos compared with a plain loop and with closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metok_vllm.benchmarks.questions.bootstrap import Draws, Estimate

VIDEOS = ["a", "b", "c", "d"]


@settings(deadline=None, max_examples=40)
@given(
    answers=st.lists(st.tuples(st.sampled_from(VIDEOS), st.integers(0, 5)), min_size=1),
    seed=st.integers(0, 99),
)
def test_means_are_those_of_a_plain_loop(answers: list[tuple[str, int]], seed: int) -> None:
    draws = Draws(VIDEOS, seed, resamples=20)
    expected = []
    for times in draws.times_RV:
        drawn = [
            value
            for video, count in zip(VIDEOS, times, strict=True)
            for _ in range(count)
            for name, value in answers
            if name == video
        ]
        if drawn:
            expected.append(sum(drawn) / len(drawn))
    found = draws.means([video for video, _ in answers], [value for _, value in answers])
    np.testing.assert_allclose(found, expected)


def test_every_draw_has_as_many_videos() -> None:
    assert set(Draws(VIDEOS).times_RV.sum(axis=1)) == {len(VIDEOS)}


def test_one_question_a_video_is_a_binomial() -> None:
    count, share = 400, 0.3
    videos = [str(n) for n in range(count)]
    values = [float(n < share * count) for n in range(count)]
    estimate = Draws(videos, resamples=20_000).estimate(videos, values)
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    half = 1.96 * math.sqrt(share * (1 - share) / count)
    assert estimate.mean == pytest.approx(share)
    assert estimate.low == pytest.approx(share - half, abs=0.005)
    assert estimate.high == pytest.approx(share + half, abs=0.005)


def test_questions_that_share_a_video_count_as_one() -> None:
    """Ten copies of each question make the interval no narrower."""
    videos = [str(n) for n in range(50)]
    values = [float(n % 2) for n in range(50)]
    draws = Draws(videos)
    assert draws.estimate(videos * 10, values * 10) == draws.estimate(videos, values)


def test_one_video_has_no_interval() -> None:
    draws = Draws(VIDEOS)
    assert draws.estimate(["a", "a"], [0.0, 1.0]) == Estimate(0.5, None, None)
    two = draws.estimate(["a", "b"], [0.0, 1.0])
    assert two is not None
    assert (two.low, two.high) == (0, 1)


def test_nothing_has_no_estimate() -> None:
    assert Draws(VIDEOS).estimate([], []) is None
    with pytest.raises(ValueError, match="no videos"):
        Draws([])
