"""Pictures of stories: textured backgrounds, moving shapes, a small dot, noise, words if any.

Positions are shares of the picture's side, so a story looks the same at every size. Edges are
smoothed by signed distances.

Shape suffixes: T frames, H height, W width, C colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from metok_vllm.benchmarks.eventqa.story import FADE_FRAMES, Story
from metok_vllm.benchmarks.eventqa.words import Plate, paint, plates
from metok_vllm.benchmarks.eventqa.world import COLOURS, Scene

Array = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]

RADIUS = (0.15, 0.19)
DOT_RADIUS = (0.052, 0.062)
DOT_EDGE = 0.062  # distance of the dot's centre from the picture's edge
SWAY = 0.05  # amplitude of the shapes' motion
CONTRAST = 16.0  # of textures, in grey levels
NOISE = 6.0  # greatest standard deviation, in grey levels


@dataclass(frozen=True)
class Place:
    """Position, radius, angle and phase of motion of a shape."""

    x: float
    y: float
    radius: float
    angle: float
    phase: float


@dataclass(frozen=True)
class Stage:
    """A scene with all random details of its appearance."""

    scene: Scene
    tints: tuple[Array, Array, Array]  # background, shapes, dot
    shapes: tuple[Place, ...]
    dot: Place
    bars: tuple[Place, ...]
    pitch: float


def pictures(story: Story, size: int) -> Pictures:
    """All frames of a story, uint8 [T, size, size, 3]."""
    return np.stack(list(_stream(story, size)))


def stage(scene: Scene, rng: np.random.Generator) -> Stage:
    """Random places, sizes and tints of a scene. Each shape has its own quarter of the picture."""

    quarters = rng.permutation(4)[: scene.count]
    shapes = tuple(
        Place(
            0.25 + 0.5 * (quarter % 2) + rng.uniform(-0.03, 0.03),
            0.25 + 0.5 * (quarter // 2) + rng.uniform(-0.03, 0.03),
            rng.uniform(*RADIUS),
            rng.uniform(-0.2, 0.2),
            rng.uniform(0, 2 * np.pi),
        )
        for quarter in quarters
    )
    along, edge = rng.uniform(0.1, 0.9), DOT_EDGE if rng.random() < 0.5 else 1 - DOT_EDGE
    x, y = (along, edge) if rng.random() < 0.5 else (edge, along)
    dot = Place(x, y, rng.uniform(*DOT_RADIUS), 0.0, 0.0)
    bars = tuple(
        Place(rng.uniform(0, 1), rng.uniform(0, 1), 0.12, rng.uniform(0, 3.1), 0.0)
        for _ in range(rng.integers(0, 3))
    )
    tints = (_tint(scene.background, rng), _tint(scene.colour, rng), _tint(scene.dot, rng))
    return Stage(scene, tints, shapes, dot, bars, rng.uniform(0.08, 0.2))


def _tint(name: str, rng: np.random.Generator) -> Array:
    return np.asarray(COLOURS[name], np.float32) + rng.normal(0, 6, 3).astype(np.float32)


def backdrop(stage: Stage, size: int) -> Array:
    """Background, texture and grey bars, float32 [size, size, 3], constant during an event."""
    ground_HW3 = np.empty((size, size, 3), np.float32)
    ground_HW3[:] = stage.tints[0]
    y, x = _grid(size)
    texture, pitch = stage.scene.texture, stage.pitch
    if texture == "stripes":
        wave = np.sign(np.sin(2 * np.pi * (x + 0.5 * y) / pitch))
    elif texture == "checks":
        wave = np.sign(np.sin(2 * np.pi * x / pitch) * np.sin(2 * np.pi * y / pitch))
    else:
        wave = 2 * y - 1 if texture == "slope" else np.zeros_like(x)
    ground_HW3 += (CONTRAST * wave)[..., None].astype(np.float32)
    grey = np.full(3, 128, np.float32)
    for bar in stage.bars:
        _paint(ground_HW3, bar, grey, _bar)
    return ground_HW3


def draw(stage: Stage, backdrop_HW3: Array, moment: float) -> Array:
    """One frame of an event, float32 [size, size, 3]; `moment` counts frames since its start."""
    picture_HW3 = backdrop_HW3.copy()
    outline = SHAPE_OF[stage.scene.shape]
    for shape in stage.shapes:
        sway = 0.25 * moment + shape.phase
        x = min(max(shape.x + SWAY * np.sin(sway), 0.21), 0.79)
        y = min(max(shape.y + SWAY * np.cos(0.7 * sway), 0.21), 0.79)
        moved = Place(x, y, shape.radius, shape.angle + 0.1 * np.sin(sway), 0.0)
        _paint(picture_HW3, moved, stage.tints[1], outline)
    _paint(picture_HW3, stage.dot, stage.tints[2], _circle)
    return picture_HW3


def finish(picture_HW3: Array, noise: float, rng: np.random.Generator) -> Pictures:
    """Add noise and round to uint8."""
    if noise:
        # One grey value a pixel is cheaper than one a colour.
        grain = rng.standard_normal(picture_HW3.shape[:2], np.float32)
        picture_HW3 = picture_HW3 + noise * grain[..., None]
    return np.clip(picture_HW3 + 0.5, 0, 255).astype(np.uint8)


def _stream(story: Story, size: int) -> Iterator[Pictures]:
    # Larger pictures need more noise values, which must not change the shapes.
    rng = np.random.default_rng([*story.seed, story.frames, 1])
    grain = np.random.default_rng([*story.seed, story.frames, 3])
    noise = float(rng.uniform(0, NOISE))
    before: _Shot | None = None
    for event, plate in zip(story.events, plates(story), strict=True):
        staged = stage(event.scene, rng)
        shot = _Shot(staged, backdrop(staged, size), plate, event.start)
        for frame in range(event.start, event.end):
            picture_HW3 = shot.at(frame)
            faded = (frame - event.start + 1) / (FADE_FRAMES + 1)
            if event.soft and before is not None and faded < 1:
                picture_HW3 = faded * picture_HW3 + (1 - faded) * before.at(frame)
            yield finish(picture_HW3, noise, grain)
        before = shot


@dataclass(frozen=True)
class _Shot:
    """An event that is drawn from frame `start` on."""

    stage: Stage
    backdrop_HW3: Array
    plate: Plate | None
    start: int

    def at(self, frame: int) -> Array:
        picture_HW3 = draw(self.stage, self.backdrop_HW3, frame - self.start)
        if self.plate is not None:
            paint(picture_HW3, self.plate)
        return picture_HW3


def _paint(
    picture_HW3: Array, place: Place, tint: Array, outline: Callable[[Array, Array], Array]
) -> None:
    """Draw one shape over the picture, within the square around it."""
    size = len(picture_HW3)
    reach = place.radius * 1.5 + 2 / size
    left, right = (_clamp(place.x + side * reach, size) for side in (-1, 1))
    top, bottom = (_clamp(place.y + side * reach, size) for side in (-1, 1))
    y, x = _grid(size)
    x = (x[top:bottom, left:right] - place.x) / place.radius
    y = (y[top:bottom, left:right] - place.y) / place.radius
    cos, sin = np.float32(np.cos(place.angle)), np.float32(np.sin(place.angle))
    distance = outline(cos * x + sin * y, cos * y - sin * x) * (place.radius * size)
    cover_HW1 = np.clip(0.5 - distance, 0, 1)[..., None]
    patch_HW3 = picture_HW3[top:bottom, left:right]
    patch_HW3 += cover_HW1 * (tint - patch_HW3)


def _clamp(share: float, size: int) -> int:
    return int(min(max(round(share * size), 0), size))


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Array, Array]:
    middle = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = np.meshgrid(middle, middle, indexing="ij")
    return y.astype(np.float32), x.astype(np.float32)


# Signed distances to outlines of radius 1, negative inside. Not exact away from the edge.


def _circle(x: Array, y: Array) -> Array:
    distance: Array = np.hypot(x, y) - np.float32(1)
    return distance


def _square(x: Array, y: Array) -> Array:
    distance: Array = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.85)
    return distance


def _triangle(x: Array, y: Array) -> Array:
    side = np.float32(0.866) * np.abs(x) - np.float32(0.5) * (y + np.float32(1))
    distance: Array = np.maximum(side, y - np.float32(0.7))
    return distance


def _star(x: Array, y: Array) -> Array:
    angle = np.arctan2(x, -y)
    fifth = np.float32(2 * np.pi / 5)
    lobe = np.abs(angle - fifth * np.round(angle / fifth)) / (fifth / 2)
    reach = (np.float32(1.1) - np.float32(0.7) * lobe).astype(np.float32)
    distance: Array = np.hypot(x, y) - reach
    return distance * np.float32(0.6)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    upright = np.maximum(x - np.float32(0.3), y - np.float32(1))
    across = np.maximum(x - np.float32(1), y - np.float32(0.3))
    distance: Array = np.minimum(upright, across)
    return distance


def _bar(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) - np.float32(1), np.abs(y) - np.float32(0.12))


SHAPE_OF: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
