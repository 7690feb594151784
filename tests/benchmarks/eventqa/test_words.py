"""Words in the scenes: drawn where they are asked for, read back, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import draw_question
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.benchmarks.eventqa.words import WORDS, Plate, paint, plates, with_words
from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES

SIZE = 224


def drawn(word: str, x: float, y: float) -> np.ndarray:
    picture_HW3 = np.full((SIZE, SIZE, 3), 128, np.float32)
    paint(picture_HW3, Plate(word, x, y))
    return picture_HW3


def read(picture_HW3: np.ndarray, plate: Plate) -> str:
    """The word whose plate at the known place fits the picture best."""
    fits = {}
    for word in WORDS:
        wanted_HW3 = drawn(word, plate.x, plate.y)
        inside = (wanted_HW3 != 128).any(-1)
        fits[word] = np.abs(wanted_HW3 - picture_HW3)[inside].mean()
    return min(fits, key=lambda word: fits[word])


def test_the_word_of_the_answer_stands_in_its_scene() -> None:
    story = with_words(draw_story((3, 1), 32, "test"))
    shown = pictures(story, SIZE)
    for event, plate in zip(story.events, plates(story), strict=True):
        assert plate is not None
        middle = shown[(event.start + event.end) // 2].astype(np.float32)
        assert read(middle, plate) == event.word
    assert len({event.word for event in story.events}) == len(story.events)
    question = draw_question(story, "read", np.random.default_rng(0))
    (event,) = [e for e in story.events if f"the {e.scene.background} scene" in question.text]
    assert question.answer == event.word


def test_words_are_small_and_leave_everything_else_as_it_was() -> None:
    story = draw_story((3, 2), 16, "test")
    without, with_them = pictures(story, SIZE), pictures(with_words(story), SIZE)
    changed = (without != with_them).any(-1).mean((1, 2))
    assert (changed > 0).all()
    assert (changed < 0.03).all()
    with pytest.raises(ValueError, match="has no words"):
        draw_question(story, "read", np.random.default_rng(0))


def test_words_are_no_other_answers() -> None:
    assert not {*WORDS} & {*COLOURS, *SHAPES, *COUNTS, "yes", "no"}
    assert len(set(WORDS)) == len(WORDS) == 16
