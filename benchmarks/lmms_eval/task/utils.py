"""The functions of metok_folder.yaml: answers are compared as `metok bench --quality` does."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.questions.choices import chosen, normalised, with_choices

FOLDER = Path(os.environ.get("QUESTIONS_FOLDER", ".")).resolve()
QUESTIONS = str(FOLDER / "questions.json")
NO_KIND = "question"


def with_answers(docs: Any) -> Any:
    """The questions whose right answer is known."""
    return docs.filter(lambda doc: doc.get("answer") is not None)


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The path of the video."""
    return [str(FOLDER / doc["video"])]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The question as it is sent: with its choices below it, if it has any."""
    return with_choices(doc["question"], doc.get("choices") or [])


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
