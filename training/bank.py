"""The frame bank: frames that are drawn once, with the attributes of each frame and patch.

Shape suffixes: N frames, H height, W width, P patches, C colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metok_vllm.benchmarks.eventqa.drawing import NOISE, Array, Stage, backdrop, draw, finish, stage
from metok_vllm.benchmarks.eventqa.world import (
    COLOURS,
    COUNTS,
    SHAPES,
    TEXTURES,
    Scene,
    Split,
    combinations,
)

COVERED = 0.2  # share of a patch that a shape or dot must cover to be its label
_BLACK = np.zeros(3, np.float32)


@dataclass(frozen=True)
class Truth:
    """Attribute numbers of N frames, int64 [N] each, and coverage float32 [N, P]."""

    background: Tensor
    colour: Tensor
    shape: Tensor
    count: Tensor
    dot: Tensor
    shape_cover_NP: Tensor
    dot_cover_NP: Tensor

    def __getitem__(self, index: Tensor) -> Truth:
        return Truth(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def scene_numbers(scene: Scene) -> tuple[int, int, int, int, int]:
    """Background, colour, shape, count and dot as numbers from 0."""
    names = list(COLOURS)
    return (
        names.index(scene.background),
        names.index(scene.colour),
        SHAPES.index(scene.shape),
        scene.count - 1,
        names.index(scene.dot),
    )


def random_scene(split: Split, rng: np.random.Generator) -> Scene:
    """A random scene of the split."""
    choices = combinations(split)
    background, colour, shape = choices[rng.integers(len(choices))]
    dots = [name for name in COLOURS if name not in (background, colour)]
    count = int(rng.integers(1, len(COUNTS) + 1))
    dot, texture = dots[rng.integers(len(dots))], TEXTURES[rng.integers(len(TEXTURES))]
    return Scene(background, colour, shape, count, dot, texture)


def draw_bank(
    split: Split, events: int, frames: int, size: int, grid: int, seed: int, *, steady: bool = False
) -> tuple[Tensor, Truth]:
    """`events` scenes, `frames` moments of each: pixels uint8 [N, H, W, C] and their truth.

    Frame n shows event n // frames. With `steady`, frames 0 and 1 of an event follow each other, as
    do 2 and 3, and so on.
    """
    rng = np.random.default_rng([seed, events, frames])
    pixels = np.empty((events * frames, size, size, 3), np.uint8)
    covers = np.empty((2, events * frames, grid * grid), np.float32)
    numbers = np.empty((5, events * frames), np.int64)
    for event in range(events):
        scene = random_scene(split, rng)
        staged = stage(scene, rng)
        behind_HW3 = backdrop(staged, size)
        moment, noise = 0.0, 0.0
        for number in range(event * frames, (event + 1) * frames):
            if steady and number % 2:
                moment += 1
            else:
                moment, noise = rng.uniform(0, 40), rng.uniform(0, NOISE)
            pixels[number] = finish(draw(staged, behind_HW3, moment), noise, rng)
            covers[:, number] = _covers(staged, moment, grid)
            numbers[:, number] = scene_numbers(scene)
    truth = Truth(*(torch.from_numpy(values) for values in (*numbers, *covers)))
    return torch.from_numpy(pixels), truth


def to_pixels(pixels_NHWC: Tensor) -> Tensor:
    """The processor's output for frames: float32 [N, C, H, W] in [-1, 1]."""
    return pixels_NHWC.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _covers(staged: Stage, moment: float, grid: int) -> Array:
    """Share of each patch that shapes and dot cover, float32 [2, P]: drawn in two colours."""
    red, green = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    masks = replace(staged, tints=(_BLACK, red, green), bars=())
    size = grid * 4
    drawn_HW3 = draw(masks, np.zeros((size, size, 3), np.float32), moment)
    cells: Array = drawn_HW3.reshape(grid, 4, grid, 4, 3).mean((1, 3))
    return cells.reshape(grid * grid, 3).T[:2]
