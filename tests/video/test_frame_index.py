"""Where to decode from, and how much, for groups that are closed, open or lied about."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from metok_vllm.video.frame_index import FrameIndex, Origin
from metok_vllm.video.packets import UNKNOWN, Packets


def packets(pts: list[int], keys: list[int], dts: list[int] | None = None) -> Packets:
    """Packets of 25 a second with these times of showing; `dts` are those of decoding."""
    dts = list(range(len(pts))) if dts is None else dts
    joins = [n for n in range(1, len(dts)) if dts[n] < dts[n - 1]]
    return Packets(
        pts=pts,
        dts=dts,
        runs=[sum(join <= n for join in joins) for n in range(len(pts))],
        joins=joins,
        keys=keys,
        hidden=frozenset(),
        broken_off=False,
        time_base=Fraction(1, 25),
        nominal_fps=25.0,
    )


CLOSED = packets([0, 2, 1, 3, 5, 4], [0, 3])
# The frames 2 and 3 are stored after the second keyframe and shown before it.
OPEN = packets([0, 1, 4, 2, 3, 5], [0, 2])


def test_start_of_closed_and_open_groups() -> None:
    closed, opened = FrameIndex.of(CLOSED), FrameIndex.of(OPEN)
    assert [closed.start(i)[1] for i in range(6)] == [0, 0, 0, 3, 3, 3]
    assert closed.regular
    assert list(opened.sources) == [0, 1, 3, 4, 2, 5]
    assert [opened.start(i) for i in range(6)] == [(0, 0)] * 4 + [(4, 2)] * 2
    assert not opened.regular


def test_walk_is_what_a_decoder_would_be_fed() -> None:
    rng = random.Random(3)
    for _ in range(200):
        total = rng.randrange(1, 40)
        keys = sorted({0, *rng.sample(range(total), rng.randrange(total))})
        pts = [number + rng.choice((0, 0, 2)) for number in range(total)]
        index = FrameIndex.of(packets(pts, keys))
        wanted = sorted(rng.sample(range(total), rng.randrange(1, total + 1)))
        fed: set[int] = set()
        for place in wanted:
            begin = max(index.start(place)[1], max(fed, default=-1) + 1)
            fed |= set(range(begin, index.sources[place] + 1))
        assert index.walked(wanted) == len(fed)
        assert all(index.start(place)[1] <= index.sources[place] for place in wanted)


@pytest.mark.parametrize(
    ("found", "unsure"),
    [
        (CLOSED, 0),
        (OPEN, 0),
        (packets([3, 1, 2, 4], [0, 3]), 3),  # frames in front that lean on what is not there
        (packets([0, 1, 2, 3], [2]), 4),  # no second keyframe
        (packets([0, 1, 2, 3, 4], [1, 3]), 3),
        (packets([0, UNKNOWN, 2], [0, 2]), 3),
        (packets([0, 1, 0, 1], [0, 2], [0, 1, 0, 1]), 0),  # two recordings joined
        (packets([0, 1, 0, 1], [0, 3], [0, 1, 0, 1]), 4),  # the second from inside a group
    ],
)
def test_what_only_a_decoder_can_tell(found: Packets, unsure: int) -> None:
    assert found.unsure == unsure


def test_times_go_on_where_recordings_are_joined() -> None:
    index = FrameIndex.of(packets([7, 8, 3, 4, 5], [0, 2], [7, 8, 3, 4, 5]))
    assert [index.timestamp_s(i) for i in range(5)] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert index.duration_s == pytest.approx(0.2)


def test_an_index_that_was_seen_follows_the_decoder() -> None:
    index = FrameIndex.of(CLOSED, [0, 2, 4], [0], 6)
    assert (index.total, index.origin, index.keys) == (3, Origin.DECODED, [(0, 0)])
    twice = FrameIndex.of(CLOSED, [0, 0, 2], [0], 6)
    assert (twice.total, twice.origin, twice.walked([0, 2])) == (3, Origin.COUNTED, 3)
