"""Short words on small plates in the scenes of a story, for questions of the kind `read`.

A plate is drawn over the shapes, so that its word can always be read in the full picture. Stories
without words look as they did before: words and places have random numbers of their own.

Shape suffixes: H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from metok_vllm.benchmarks.eventqa.story import Story

# No colour, shape or number, which other questions ask for.
WORDS = (
    *("bus", "cat", "fig", "hut", "ice", "jam", "key", "map"),
    *("owl", "pen", "rug", "sun", "tea", "van", "wax", "zip"),
)
LETTERS = 0.07  # size of the font as a share of the picture's side
MARGIN = 0.015
PAPER, INK = 245.0, 20.0

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Plate:
    """A word and the centre of its plate, in shares of the picture's side."""

    word: str
    x: float
    y: float


def with_words(story: Story) -> Story:
    """The story with a different word in every event."""
    rng = np.random.default_rng([*story.seed, story.frames, 4])
    words = rng.permutation(WORDS)[: len(story.events)]
    events = zip(story.events, words, strict=True)
    return replace(story, events=tuple(replace(event, word=str(word)) for event, word in events))


def plates(story: Story) -> list[Plate | None]:
    """The plate of each event, None where it has no word. Places keep clear of the dot."""
    rng = np.random.default_rng([*story.seed, story.frames, 5])
    places = rng.uniform(0.3, 0.7, (len(story.events), 2))
    return [
        None if event.word is None else Plate(event.word, float(x), float(y))
        for event, (x, y) in zip(story.events, places, strict=True)
    ]


def paint(picture_HW3: Array, plate: Plate) -> None:
    """Draw the plate with its word over the picture."""
    size = len(picture_HW3)
    grey_HW = _drawn(plate.word, size)
    height, width = grey_HW.shape
    top, left = round(plate.y * size - height / 2), round(plate.x * size - width / 2)
    picture_HW3[top : top + height, left : left + width] = grey_HW[..., None]


@lru_cache(maxsize=64)
def _drawn(word: str, size: int) -> Array:
    """The plate in grey levels, float32 [H, W]."""
    font = ImageFont.load_default(size=LETTERS * size)
    left, top, right, bottom = font.getbbox(word.upper())
    margin = max(1, round(MARGIN * size))
    width, height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
    image = Image.new("L", (width, height), round(PAPER))
    place = (margin - left, margin - top)
    ImageDraw.Draw(image).text(place, word.upper(), fill=round(INK), font=font)
    return np.asarray(image, np.float32)
