"""Which video each request of a workload is about, and how often that video was asked about.

Two schemes: a fixed number of questions about every video in rotation, or a share of the requests
about the videos of a pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from math import floor
from typing import NamedTuple


class Ask(NamedTuple):
    """The number of a request's video. `question` counts the earlier requests about it.

    After a `last` one no request is about this video.
    """

    video: int
    question: int
    last: bool


def in_rotation(questions: int, videos: int) -> Iterator[Ask]:
    """`questions` about every video; the second about a video comes `videos` after its first."""
    for number in count():
        block, place = divmod(number, videos * questions)
        question, slot = divmod(place, videos)
        yield Ask(block * videos + slot, question, question == questions - 1)


def with_reuse(share: float, pool: int) -> Iterator[Ask]:
    """A `share` (0 to below 1) of the requests is about a video that an earlier one asked about.

    They take turns over the first `pool` videos and are spread evenly, so that every round has
    the same mix. All others bring a video of their own: n requests have n (1 - `share`) videos, the
    count that NVIDIA Dynamo's share of reuse means (ai-dynamo/dynamo, benchmarks/multimodal/jsonl;
    it draws at random from a pool of all of them).
    """
    exact = Fraction(str(share))
    asked: list[int] = []  # requests about each video of the pool
    videos = reuses = 0
    for number in count():
        if floor(exact * (number + 1)) > floor(exact * number):
            video = reuses % len(asked)
            asked[video] += 1
            reuses += 1
            yield Ask(video, asked[video], last=False)
        else:
            if videos < pool:
                asked.append(0)
            yield Ask(videos, 0, last=videos >= pool)
            videos += 1
