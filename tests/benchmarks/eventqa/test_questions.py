"""Answers compared with a second derivation, frame by frame."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from metok_vllm.benchmarks.eventqa.questions import CHANCE, KINDS, Kind, draw_question
from metok_vllm.benchmarks.eventqa.story import Story, draw_story
from metok_vllm.benchmarks.eventqa.world import COUNTS, Scene


def naive_answer(story: Story, text: str) -> str:
    """The answer from every frame, by patterns in place of the generator's branches."""
    shown: list[Scene] = [e.scene for e in story.events for _ in range(e.start, e.end)]
    order = list(dict.fromkeys(scene.background for scene in shown))
    if text == "List the scenes in order.":
        return " ".join(order)
    if found := re.fullmatch(r"Which scene is (first|last)\?", text):
        return order[0 if found[1] == "first" else -1]
    if found := re.fullmatch(r"Which scene comes (after|before) the (\w+) scene\?", text):
        return order[order.index(found[2]) + (1 if found[1] == "after" else -1)]
    if found := re.fullmatch(r"Is there a (\w+) scene\?", text):
        return "yes" if found[1] in order else "no"
    if found := re.fullmatch(r"Is there a (\w+) (\w+)\?", text):
        return "yes" if any((s.colour, s.shape) == found.groups() for s in shown) else "no"
    if found := re.fullmatch(r"Which scene shows a (\w+) (\w+)\?", text):
        return next(s.background for s in shown if (s.colour, s.shape) == found.groups())
    found = re.fullmatch(r"(.*) the (\w+) scene\?", text)
    assert found, text
    scene = next(s for s in shown if s.background == found[2])
    return {
        "What is in": f"{scene.colour} {scene.shape}",
        "What colour is the dot in": scene.dot,
        "How many shapes are in": COUNTS[scene.count - 1],
    }[found[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_answers(kind: Kind) -> None:
    rng = np.random.default_rng(3)
    answers: Counter[str] = Counter()
    for seed in range(200):
        story = draw_story((seed,), 32, "train", needle=kind == "needle")
        question = draw_question(story, kind, rng)
        assert question.kind == kind
        assert question.answer == naive_answer(story, question.text), question
        answers[question.answer] += 1
    # A constant answer is not much better than guessing.
    assert answers.most_common(1)[0][1] / 200 < max(2.5 * CHANCE[kind], 0.1) + 0.1


def test_a_needle_question_is_about_the_short_event() -> None:
    rng = np.random.default_rng(0)
    story = draw_story((4,), 128, "test", needle=True)
    assert story.needle is not None
    scene = story.events[story.needle].scene
    assert draw_question(story, "needle", rng).text == f"What is in the {scene.background} scene?"
    with pytest.raises(ValueError, match="has no needle"):
        draw_question(draw_story((4,), 128, "test"), "needle", rng)


def test_half_of_the_existence_questions_are_about_absent_things() -> None:
    rng = np.random.default_rng(0)
    stories = [draw_story((seed,), 32, "train") for seed in range(400)]
    answers = Counter(draw_question(story, "exists", rng).answer for story in stories)
    assert 160 < answers["yes"] < 240
