"""The scenes of event-QA and their split into training and test.

A scene is a background with one to four shapes of one kind and a small dot near the edge. A hash of
background, colour and shape decides the split, so the test split has combinations that training
never shows.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# sRGB; distinguishable after video compression.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 220),
    "yellow": (242, 220, 50),
    "orange": (245, 135, 25),
    "purple": (135, 45, 180),
    "white": (240, 240, 240),
    "black": (22, 22, 22),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
COUNTS = ("one", "two", "three", "four")
TEXTURES = ("plain", "stripes", "checks", "slope")
HELD_OUT = 5  # one combination in five is in the test split


@dataclass(frozen=True)
class Scene:
    """The content of one event. `count` is the number of shapes, `dot` the dot's colour."""

    background: str
    colour: str
    shape: str
    count: int
    dot: str
    texture: str

    @property
    def thing(self) -> str:
        """The colour and shape, without the number."""
        return f"{self.colour} {self.shape}"


def split_of(background: str, colour: str, shape: str) -> Split:
    """The split to which a combination of attributes belongs."""
    name = f"{background}/{colour}/{shape}".encode()
    return "test" if zlib.crc32(name) % HELD_OUT == 0 else "train"


def combinations(split: Split) -> list[tuple[str, str, str]]:
    """All (background, colour, shape) of a split; a shape never has its background's colour."""
    return [
        (background, colour, shape)
        for background in COLOURS
        for colour in COLOURS
        for shape in SHAPES
        if colour != background and split_of(background, colour, shape) == split
    ]


def draw_scenes(split: Split, number: int, rng: np.random.Generator) -> list[Scene]:
    """`number` scenes of one video with different backgrounds and different things.

    Raises ValueError if there are fewer backgrounds.
    """
    if not 1 <= number <= len(COLOURS):
        raise ValueError(f"a video has 1 to {len(COLOURS)} events, got {number}")
    by_background: dict[str, list[tuple[str, str]]] = {name: [] for name in COLOURS}
    for background, colour, shape in combinations(split):
        by_background[background].append((colour, shape))
    scenes: list[Scene] = []
    for background in rng.permutation(list(COLOURS))[:number]:
        used = {(scene.colour, scene.shape) for scene in scenes}
        free = [pair for pair in by_background[background] if pair not in used]
        colour, shape = free[rng.integers(len(free))]
        dots = [name for name in COLOURS if name not in (background, colour)]
        scenes.append(
            Scene(
                str(background),
                colour,
                shape,
                int(rng.integers(1, len(COUNTS) + 1)),
                dots[rng.integers(len(dots))],
                TEXTURES[rng.integers(len(TEXTURES))],
            )
        )
    return scenes
