"""Multiple choice: the right answer once, among others of its kind, at a random place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from metok_vllm.benchmarks.eventqa.choices import POSSIBLE, with_choices
from metok_vllm.benchmarks.eventqa.clips import write_folder
from metok_vllm.benchmarks.eventqa.questions import ALL_KINDS, Kind, draw_question
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.benchmarks.eventqa.words import with_words
from metok_vllm.benchmarks.questions.prompts import CHOICE, FREE, read_folder


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_right_answer_is_one_of_the_choices(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    places: Counter[int] = Counter()
    for seed in range(100):
        story = with_words(draw_story((seed,), 32, "test", needle=kind == "needle"))
        plain = draw_question(story, kind, rng)
        question = with_choices(plain, rng)
        assert (question.text, question.answer) == (plain.text, plain.answer)
        assert question.choices.count(question.answer) == 1
        assert len(set(question.choices)) == len(question.choices)
        if kind == "list":
            assert len({frozenset(choice.split()) for choice in question.choices}) == 1
        else:
            assert set(question.choices) <= set(POSSIBLE[kind])
            assert len(question.choices) == min(4, len(POSSIBLE[kind]))
        places[question.choices.index(question.answer)] += 1
    assert max(places.values()) < 70


def test_a_folder_in_both_forms(tmp_path: Path) -> None:
    kinds: tuple[Kind, ...] = ("detail", "count", "read")
    write_folder(tmp_path, 2, 8, "test", 5, kinds, ("free", "choice"))
    found = read_folder(tmp_path, 8)
    assert [question.form for question in found] == ([FREE] * 3 + [CHOICE] * 3) * 2
    for free, choice in zip(found[:3], found[3:6], strict=True):
        assert choice.label == f"{free.kind}, choice"
        assert choice.answer == free.answer
        lines = choice.asked.splitlines()
        assert lines[0] == free.asked
        letter = next(line[0] for line in lines if line.endswith(f". {free.answer}"))
        assert choice.is_right(letter)
        assert choice.is_right(f"{letter}. {free.answer}")
        assert choice.is_right(free.answer or "")
        assert not choice.is_right("z")
    listed = json.loads((tmp_path / "questions.json").read_text())
    assert "choices" not in listed[0]
