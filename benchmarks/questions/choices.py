"""How choices are shown and answers compared. lmms-eval's environment imports it without others."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase


def normalised(text: str) -> str:
    """An answer without case, outer white space and a final full stop, for comparison."""
    return text.strip().casefold().removesuffix(".").rstrip()


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question as it is sent: with its choices below it, a letter each."""
    if not choices:
        return question
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the right choice."])


def chosen(text: str, choices: Sequence[str]) -> str:
    """The choice that an answer names by its letter or its text; any other answer is unchanged."""
    answer = normalised(text)
    if any(answer == normalised(choice) for choice in choices):
        return text
    letter = re.match(r"\(?([a-z])(?:[).:]|$)", answer)
    place = LETTERS.find(letter[1].upper()) if letter else -1
    return choices[place] if 0 <= place < len(choices) else text
