"""Event-QA on disk: a folder of mp4 clips with `questions.json` for `metok bench --quality`.

`questions.json` is a list of {"video", "question", "answer", "kind"}, with "choices" where a
question is multiple choice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from metok_vllm.benchmarks.client.videos import encode_mp4
from metok_vllm.benchmarks.eventqa.choices import with_choices
from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import (
    CHANCE,
    KINDS,
    Kind,
    Question,
    draw_question,
)
from metok_vllm.benchmarks.eventqa.story import Story, draw_story
from metok_vllm.benchmarks.eventqa.words import with_words
from metok_vllm.benchmarks.eventqa.world import Split

SIDE = 224  # pixels; twice the side of the demo model's input
FPS = 2
QUALITY = {"preset": "veryfast", "crf": "16"}
NEEDLE_LEAST = 16  # frames of the shortest video with a needle
QUESTIONS_FILE = "questions.json"
CHANCE_FILE = "chance.json"  # the accuracy of guessing by kind

Form = Literal["free", "choice"]
FORMS: tuple[Form, ...] = get_args(Form)
FREE: tuple[Form, ...] = ("free",)


@dataclass(frozen=True)
class ClipQuestion:
    """An entry of `questions.json`; `choices` is None for a free-form question."""

    video: str
    question: str
    answer: str
    kind: Kind
    choices: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, without `choices` if there are none."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def draw_questions(
    videos: int,
    frames: int,
    split: Split,
    seed: int,
    kinds: tuple[Kind, ...] = KINDS,
    forms: tuple[Form, ...] = FREE,
) -> list[tuple[Story, list[Question]]]:
    """`videos` stories with one question of each kind, which is asked in each form.

    Short videos have no needle. Videos have words only if `kinds` has `read`.
    """
    drawn = []
    for number in range(videos):
        needle = frames >= NEEDLE_LEAST and "needle" in kinds
        story = draw_story((seed, number), frames, split, needle=needle)
        if "read" in kinds:
            story = with_words(story)
        rng = np.random.default_rng([seed, number, 2])
        questions = [draw_question(story, k, rng) for k in kinds if k != "needle" or needle]
        order = np.random.default_rng([seed, number, 6])
        asked = []
        for form in forms:
            asked += [with_choices(q, order) if form == "choice" else q for q in questions]
        drawn.append((story, asked))
    return drawn


def clip_bytes(story: Story, side: int = SIDE, fps: int = FPS) -> bytes:
    """A story as H.264 in an mp4, `fps` frames a second."""
    return encode_mp4(pictures(story, side), fps, side, side, QUALITY)


def write_folder(
    folder: Path,
    videos: int,
    frames: int,
    split: Split,
    seed: int,
    kinds: tuple[Kind, ...] = KINDS,
    forms: tuple[Form, ...] = FREE,
) -> list[ClipQuestion]:
    """Write clips and questions to a new `folder`. Returns the entries of `questions.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[ClipQuestion] = []
    for story, questions in draw_questions(videos, frames, split, seed, kinds, forms):
        name = f"{split}-{story.name}.mp4"
        (folder / name).write_bytes(clip_bytes(story))
        entries += [
            ClipQuestion(name, q.text, q.answer, q.kind, q.choices or None) for q in questions
        ]
    lines = ",\n".join(json.dumps(entry.to_dict()) for entry in entries)
    (folder / QUESTIONS_FILE).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (folder / CHANCE_FILE).write_text(json.dumps(CHANCE, indent=2) + "\n", encoding="utf-8")
    return entries
