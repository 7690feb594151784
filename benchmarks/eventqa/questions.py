"""Questions about a story, with their answers.

`CHANCE` is the accuracy of guessing among the possible answers without the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from metok_vllm.benchmarks.eventqa.story import EVENTS, Story
from metok_vllm.benchmarks.eventqa.words import WORDS
from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES

Kind = Literal["scene", "object", "detail", "order", "count", "exists", "list", "needle", "read"]
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
# `read` draws words into the videos, so it is asked on request only.
KINDS = tuple(kind for kind in ALL_KINDS if kind != "read")

_THINGS = len(COLOURS) * len(SHAPES)
_SCENES = (EVENTS[0] + EVENTS[1]) // 2
CHANCE: dict[Kind, float] = {
    "scene": 1 / (_THINGS - len(SHAPES)),
    "object": 1 / (len(COLOURS) - 1),
    "detail": 1 / (len(COLOURS) - 1),
    "order": 1 / len(COLOURS),
    "count": 1 / len(COUNTS),
    "exists": 1 / 2,
    "list": 1 / len(COLOURS) ** _SCENES,
    "needle": 1 / (_THINGS - len(SHAPES)),
    "read": 1 / len(WORDS),
}


@dataclass(frozen=True)
class Question:
    """A question about one story and its only right answer, which may be one of `choices`."""

    kind: Kind
    text: str
    answer: str
    choices: tuple[str, ...] = ()


def draw_question(story: Story, kind: Kind, rng: np.random.Generator) -> Question:
    """A random question of a kind.

    Raises ValueError for a needle or a word to read if the story has none.
    """
    events = story.events
    index = int(rng.integers(len(events)))
    scene, word = events[index].scene, events[index].word
    if kind == "needle":
        if story.needle is None:
            raise ValueError(f"story {story.name} has no needle")
        scene = events[story.needle].scene
    match kind:
        case "scene" | "needle":
            text, answer = f"What is in the {scene.background} scene?", scene.thing
        case "object":
            text, answer = f"Which scene shows a {scene.thing}?", scene.background
        case "detail":
            text, answer = f"What colour is the dot in the {scene.background} scene?", scene.dot
        case "count":
            text = f"How many shapes are in the {scene.background} scene?"
            answer = COUNTS[scene.count - 1]
        case "read":
            if word is None:
                raise ValueError(f"story {story.name} has no words")
            text, answer = f"Which word is written in the {scene.background} scene?", word
        case "exists":
            text, answer = _exists(story, rng)
        case "order":
            text, answer = _order(story, rng)
        case "list":
            text = "List the scenes in order."
            answer = " ".join(event.scene.background for event in events)
    return Question(kind, text, answer)


def _exists(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    """A scene or a thing, present or absent with equal probability.

    The parts of an absent thing may be present.
    """
    there = rng.random() < 0.5
    if rng.random() < 0.5:
        shown = {event.scene.background for event in story.events}
        there = there or len(shown) == len(COLOURS)
        names = sorted(shown if there else set(COLOURS) - shown)
        return f"Is there a {names[rng.integers(len(names))]} scene?", "yes" if there else "no"
    things = {(event.scene.colour, event.scene.shape) for event in story.events}
    near = {(c, s) for c in {c for c, _ in things} for s in {s for _, s in things}} - things
    every = {(c, s) for c in COLOURS for s in SHAPES} - things
    pairs = sorted(things if there else near if near and rng.random() < 0.5 else every)
    colour, shape = pairs[rng.integers(len(pairs))]
    return f"Is there a {colour} {shape}?", "yes" if there else "no"


def _order(story: Story, rng: np.random.Generator) -> tuple[str, str]:
    names = [event.scene.background for event in story.events]
    index = int(rng.integers(len(names) - 1)) if len(names) > 1 else 0
    wanted = ["first", "last", "after", "before", "after", "before"]
    match wanted[int(rng.integers(len(wanted) if len(names) > 1 else 2))]:
        case "first":
            return "Which scene is first?", names[0]
        case "last":
            return "Which scene is last?", names[-1]
        case "after":
            return f"Which scene comes after the {names[index]} scene?", names[index + 1]
        case _:
            return f"Which scene comes before the {names[index + 1]} scene?", names[index]
