"""Positions in time, height and width as Qwen2.5-VL and Qwen3-VL were published, token by token.

The published rule: text counts on in all three; a video or image is a grid that starts where the
text before it ends; text after it continues at the largest position plus 1. Transformers 5.19 has
another rule after Qwen2.5-VL's videos. Plain loops, nothing of vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL, TOKENS_PER_SECOND
from tests.reference.stage1 import NOWHERE, Grid, frame_length, sides_of

IMAGE, VIDEO = ID_OF["<|image_pad|>"], ID_OF["<|video_pad|>"]

Place = tuple[int, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class Medium:
    """Frames of rows x columns tokens; an image has one. `seconds` are those between two frames."""

    frames: int
    rows: int
    columns: int
    seconds: float = 1.0


@dataclass(frozen=True)
class Positions:
    """(time, height, width) of each prompt token; new token i is at index + `delta` in all three.

    The index of the first new token is the length of the prompt.
    """

    places: list[Place]
    delta: int

    @classmethod
    def counted(cls, tokens: int) -> Positions:
        """Those of text."""
        return cls([(index, index, index) for index in range(tokens)], 0)

    def at(self, index: int) -> Place:
        """The place of a token by its index in the prompt or beyond it."""
        if index < len(self.places):
            return self.places[index]
        return (index + self.delta, index + self.delta, index + self.delta)


def dense_positions(
    family: str, ids: Sequence[int], images: Sequence[Medium], videos: Sequence[Medium]
) -> Positions:
    """Positions of a prompt whose media are given in the order of their placeholders.

    Qwen2.5-VL's videos are one run of placeholders and their time counts seconds; Qwen3-VL's have
    text between the frames, and each frame is a grid of its own.
    """
    grids: dict[int, list[list[Place]]] = {
        IMAGE: [grid for image in images for grid in _grids(family, image)],
        VIDEO: [grid for video in videos for grid in _grids(family, video)],
    }
    places: list[Place] = []
    following = 0
    while len(places) < len(ids):
        token = ids[len(places)]
        if token not in grids:
            places.append((following, following, following))
            following += 1
            continue
        grid = grids[token].pop(0)
        assert all(pad == token for pad in ids[len(places) : len(places) + len(grid)])
        places += [(following + t, following + y, following + x) for t, y, x in grid]
        following += 1 + max(max(place) for place in grid)
    assert not any(grids.values()), "more media than placeholders"
    return Positions(places, following - len(ids))


def _grids(family: str, medium: Medium) -> list[list[Place]]:
    """One grid per run of placeholders: places relative to the position where the run starts."""
    if family != QWEN2_5_VL:
        return [_frame(0, medium) for _ in range(medium.frames)]
    times = [
        math.floor(frame * medium.seconds * TOKENS_PER_SECOND) for frame in range(medium.frames)
    ]
    return [[place for time in times for place in _frame(time, medium)]]


def _frame(time: int, medium: Medium) -> list[Place]:
    return [(time, y, x) for y in range(medium.rows) for x in range(medium.columns)]


@dataclass(frozen=True)
class Kept:
    """A METok video in the dense prompt: `length` tokens from `start` on, of which `tokens` stay.

    `tokens` are counted from `start`, in the order of the prompt. A pooled token is the one at its
    cell's centre.
    """

    start: int
    length: int
    tokens: list[int]

    def of(self, prompt: Sequence[T]) -> list[T]:
        """What belongs to the kept tokens, from what belongs to the tokens of the dense prompt."""
        return [prompt[self.start + token] for token in self.tokens]


def kept_positions(dense: Positions, videos: Sequence[Kept]) -> Positions:
    """Positions of the prompt that METok makes of a dense one: every token keeps its own."""
    places = kept_of_prompt(dense.places, videos)
    return Positions(places, dense.delta + len(dense.places) - len(places))


def kept_of_prompt(prompt: Sequence[T], videos: Sequence[Kept]) -> list[T]:
    """What belongs to the tokens of METok's prompt: all text, and what is kept of the videos."""
    result: list[T] = []
    end = 0
    for video in videos:
        result += [*prompt[end : video.start], *video.of(prompt)]
        end = video.start + video.length
    return [*result, *prompt[end:]]


def kept_tokens(
    features: Sequence[Sequence[int]],
    size: int,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
) -> list[int]:
    """Which tokens of a dense video METok keeps: all separators, and some features of each frame.

    A frame has `size` features; `before` and `after` count its separators.
    """
    kept: list[int] = []
    first = 0
    for frame, places in enumerate(features):
        head, tail = before[frame] if before else 0, after[frame] if after else 0
        kept += range(first, first + head)
        first += head
        kept += [first + place for place in places]
        first += size
        kept += range(first, first + tail)
        first += tail
    return kept


def cell_centres(grid: Grid, stride: int) -> list[int]:
    """The features at the centres of the cells that `area` pools, row by row."""
    rows, columns = sides_of(grid)
    centres = [
        _centre(top, stride, rows) * columns + _centre(left, stride, columns)
        for top in range(0, rows, stride)
        for left in range(0, columns, stride)
    ]
    assert len(centres) == frame_length(grid, stride, "area", NOWHERE)
    return centres


def _centre(start: int, stride: int, side: int) -> int:
    """The middle of a cell that starts at `start`; of two, the first."""
    end = min(start + stride, side)
    return (start + end - 1) // 2
