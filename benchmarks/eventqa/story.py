"""A video as a list of events with their scenes and frames, reproducible from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metok_vllm.benchmarks.eventqa.world import COLOURS, Scene, Split, draw_scenes

NEEDLE_FRAMES = 2
LEAST_FRAMES = 2  # of an event
FADE_FRAMES = 3  # of a soft cut
EVENTS = (2, 6)  # default least and most events


@dataclass(frozen=True)
class Event:
    """The frames from `start` to `end`, exclusive. A `soft` event fades in. `word` can be read."""

    scene: Scene
    start: int
    end: int
    soft: bool = False
    word: str | None = None


@dataclass(frozen=True)
class Story:
    """One video. `seed` determines places, sizes, motion and noise."""

    seed: tuple[int, ...]
    frames: int
    events: tuple[Event, ...]
    needle: int | None = None  # the event with two frames

    @property
    def name(self) -> str:
        """A file name, unique within a split."""
        return "-".join(map(str, self.seed)) + f"-{self.frames}"


def draw_story(
    seed: tuple[int, ...],
    frames: int,
    split: Split,
    *,
    events: int | None = None,
    needle: bool = False,
) -> Story:
    """The story of a seed with `frames` frames and `events` events (None: random).

    `needle` makes one event, neither first nor last, two frames long. Raises ValueError if the
    events do not fit the frames.
    """
    rng = np.random.default_rng([*seed, frames])
    most = min(EVENTS[1], frames // LEAST_FRAMES)
    least = min(3 if needle else EVENTS[0], most)
    number = int(rng.integers(least, most + 1)) if events is None else events
    if number < 1 or number > min(len(COLOURS), frames // LEAST_FRAMES):
        raise ValueError(f"{number} events do not fit {frames} frames")
    if needle and number < 3:
        raise ValueError(f"a needle stands between other events: at least 3, got {number}")
    scenes = draw_scenes(split, number, rng)
    place = int(rng.integers(1, number - 1)) if needle else None
    lengths = event_lengths(frames, number, place, rng)
    drawn, start = [], 0
    for index, (scene, length) in enumerate(zip(scenes, lengths, strict=True)):
        # A fade would hide the needle or an event that is as short as the fade.
        whole = index and place not in (index, index - 1) and length > FADE_FRAMES
        soft = bool(whole and lengths[index - 1] > FADE_FRAMES and rng.random() < 0.4)
        drawn.append(Event(scene, start, start + length, soft))
        start += length
    return Story(seed, frames, tuple(drawn), place)


def event_lengths(
    frames: int, number: int, needle: int | None, rng: np.random.Generator
) -> list[int]:
    """Random lengths of the events, whose sum is `frames`."""
    share = rng.dirichlet([2.0] * number)
    fixed = [LEAST_FRAMES] * number
    spare = frames - LEAST_FRAMES * number
    if needle is not None:
        fixed[needle], share[needle] = NEEDLE_FRAMES, 0.0
        share = share / share.sum()
    ends = np.floor(np.cumsum(share) * spare + 0.5).astype(int)
    extra = np.diff(ends, prepend=0)
    return [base + int(more) for base, more in zip(fixed, extra, strict=True)]
