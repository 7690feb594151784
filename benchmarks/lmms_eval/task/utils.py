"""The functions of metok_folder.yaml: answers are compared as `metok bench --quality` does."""

from __future__ import annotations

import os
import re
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("QUESTIONS_FOLDER", ".")).resolve()
QUESTIONS = str(FOLDER / "questions.json")
NO_KIND = "question"
LETTERS = string.ascii_uppercase


def with_answers(docs: Any) -> Any:
    """The questions whose right answer is known."""
    return docs.filter(lambda doc: doc.get("answer") is not None)


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The path of the video."""
    return [str(FOLDER / doc["video"])]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question as it is sent: with its choices below it, if it has any."""
    choices = doc.get("choices") or []
    if not choices:
        return str(doc["question"])
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([doc["question"], *lines, "Answer with the letter of the right choice."])


def chosen(text: str, choices: Sequence[str]) -> str:
    """The choice that an answer names by its letter or its text; any other answer is unchanged."""
    answer = normalised(text)
    if any(answer == normalised(choice) for choice in choices):
        return text
    letter = re.match(r"\(?([a-z])(?:[).:]|$)", answer)
    place = LETTERS.find(letter[1].upper()) if letter else -1
    return choices[place] if 0 <= place < len(choices) else text


def normalised(text: str) -> str:
    """An answer without case, outer white space and a final full stop, for comparison."""
    return text.strip().casefold().removesuffix(".").rstrip()


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The values of the metrics for one answer."""
    choices = doc.get("choices") or []
    right = float(normalised(chosen(results[0], choices)) == normalised(doc["answer"]))
    kind = (doc.get("kind") or NO_KIND) + (", choice" if choices else "")
    return {"accuracy": right, "by_kind": {"kind": kind, "right": right}, "video": doc["video"]}


def by_kind(results: Sequence[Mapping[str, Any]]) -> float:
    """Print the accuracy of each kind of question; the value is that over all of them."""
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    for result in results:
        kinds[result["kind"]].append(result["right"])
    for kind, right in kinds.items():
        print(f"{kind:18} {100 * sum(right) / len(right):5.1f} % of {len(right)}")
    return sum(map(sum, kinds.values())) / len(results)
