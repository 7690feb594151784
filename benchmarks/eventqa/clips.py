"""Event-QA on disk: a folder of mp4 clips with `questions.json` for `metok bench --quality`.

`questions.json` is a list of {"video", "question", "answer", "kind"}.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from metok_vllm.benchmarks.client.videos import encode_mp4
from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.benchmarks.eventqa.questions import (
    CHANCE,
    KINDS,
    Kind,
    Question,
    draw_question,
)
from metok_vllm.benchmarks.eventqa.story import Story, draw_story
from metok_vllm.benchmarks.eventqa.world import Split

SIDE = 224  # pixels; twice the side of the demo model's input
FPS = 2
QUALITY = {"preset": "veryfast", "crf": "16"}
NEEDLE_LEAST = 16  # frames of the shortest video with a needle
QUESTIONS_FILE = "questions.json"
CHANCE_FILE = "chance.json"  # the accuracy of guessing by kind


@dataclass(frozen=True)
class ClipQuestion:
    """An entry of `questions.json`."""

    video: str
    question: str
    answer: str
    kind: Kind


def draw_questions(
    videos: int, frames: int, split: Split, seed: int, kinds: tuple[Kind, ...] = KINDS
) -> list[tuple[Story, list[Question]]]:
    """`videos` stories with one question of each kind; short videos have no needle."""
    drawn = []
    for number in range(videos):
        needle = frames >= NEEDLE_LEAST and "needle" in kinds
        story = draw_story((seed, number), frames, split, needle=needle)
        rng = np.random.default_rng([seed, number, 2])
        questions = [draw_question(story, k, rng) for k in kinds if k != "needle" or needle]
        drawn.append((story, questions))
    return drawn


def clip_bytes(story: Story, side: int = SIDE, fps: int = FPS) -> bytes:
    """A story as H.264 in an mp4, `fps` frames a second."""
    return encode_mp4(pictures(story, side), fps, side, side, QUALITY)


def write_folder(
    folder: Path, videos: int, frames: int, split: Split, seed: int, kinds: tuple[Kind, ...] = KINDS
) -> list[ClipQuestion]:
    """Write clips and questions to a new `folder`. Returns the entries of `questions.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[ClipQuestion] = []
    for story, questions in draw_questions(videos, frames, split, seed, kinds):
        name = f"{split}-{story.name}.mp4"
        (folder / name).write_bytes(clip_bytes(story))
        entries += [ClipQuestion(name, q.text, q.answer, q.kind) for q in questions]
    lines = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    (folder / QUESTIONS_FILE).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (folder / CHANCE_FILE).write_text(json.dumps(CHANCE, indent=2) + "\n", encoding="utf-8")
    return entries
