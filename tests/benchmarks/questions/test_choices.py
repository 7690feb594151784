"""How choices are shown, and which answers count as which choice."""

from __future__ import annotations

import pytest

from metok_vllm.benchmarks.questions.choices import chosen, normalised, with_choices

COLOURS = ["red", "green", "b"]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "b"),  # a choice's own text comes before its letter
        ("A", "red"),
        ("a.", "red"),
        ("(B) green", "green"),
        ("C: b", "b"),
        ("Red.", "red"),
        ("d", "d"),  # no such choice
        ("a red one", "a red one"),
        ("", ""),
    ],
)
def test_the_choice_that_an_answer_names(text: str, choice: str) -> None:
    assert normalised(chosen(text, COLOURS)) == choice


def test_choices_are_shown_below_the_question() -> None:
    asked = "Which?\nA. red\nB. green\nC. b\nAnswer with the letter of the right choice."
    assert with_choices("Which?", COLOURS) == asked
    assert with_choices("Which?", []) == "Which?"
