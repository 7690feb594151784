"""How many requests are about a video that was asked about before."""

from __future__ import annotations

from itertools import islice

import pytest

from metok_vllm.benchmarks.client.sharing import Ask, with_reuse


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_share_of_reuse_is_exact_in_every_round(share: float) -> None:
    """Catches first requests about a video that count as reuse, and rounds of another mix."""
    asks = list(islice(with_reuse(share, pool=4), 200))
    for begin in range(0, 200, 10):
        again = [ask for ask in asks[begin : begin + 10] if ask.question]
        assert len(again) == round(10 * share)
    # n requests bring n (1 - share) videos.
    assert len({ask.video for ask in asks}) == round(200 * (1 - share))


def test_only_videos_of_the_pool_are_asked_about_again() -> None:
    """Catches a pool that grows, an uneven turn, and questions that are not counted."""
    asks = list(islice(with_reuse(0.5, pool=3), 60))
    by_video: dict[int, list[Ask]] = {}
    for ask in asks:
        by_video.setdefault(ask.video, []).append(ask)
    assert sorted(by_video) == list(range(30))
    for video, some in by_video.items():
        assert [ask.question for ask in some] == list(range(len(some)))
        assert [ask.last for ask in some] == [video >= 3] * len(some)
    counts = [len(by_video[video]) - 1 for video in range(30)]
    assert counts[3:] == [0] * 27
    assert sum(counts[:3]) == 30
    assert max(counts[:3]) - min(counts[:3]) <= 3
