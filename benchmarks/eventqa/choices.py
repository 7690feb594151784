"""Questions of event-QA as multiple choice: the right answer among others of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metok_vllm.benchmarks.eventqa.questions import Kind, Question
from metok_vllm.benchmarks.eventqa.words import WORDS
from metok_vllm.benchmarks.eventqa.world import COLOURS, COUNTS, SHAPES

CHOICES = 4  # at most

_THINGS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
POSSIBLE: dict[Kind, Sequence[str]] = {
    "scene": _THINGS,
    "needle": _THINGS,
    "object": list(COLOURS),
    "detail": list(COLOURS),
    "order": list(COLOURS),
    "count": COUNTS,
    "exists": ("yes", "no"),
    "read": WORDS,
}


def with_choices(question: Question, rng: np.random.Generator) -> Question:
    """The question with its answer among at most four choices, in random order."""
    if question.kind == "list":
        others = _other_orders(question.answer, rng)
    else:
        others = [text for text in POSSIBLE[question.kind] if text != question.answer]
    chosen = [others[i] for i in rng.permutation(len(others))[: CHOICES - 1]]
    choices = [question.answer, *chosen]
    return replace(question, choices=tuple(choices[i] for i in rng.permutation(len(choices))))


def _other_orders(answer: str, rng: np.random.Generator) -> list[str]:
    """Other orders of the same scenes; one where a video has two scenes."""
    words = answer.split()
    orders = {" ".join(rng.permutation(words)) for _ in range(8 * CHOICES)}
    return sorted(orders - {answer})
