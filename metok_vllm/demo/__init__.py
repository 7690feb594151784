"""The embedded demo: a small trained checkpoint, its alignment towers and a sample video.

All files are written by `training/`. The model answers questions about event-QA's videos only, as
`model/README.md` describes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
ALIGNMENT_DIR = MODEL_DIR / "alignment"
CONFIG_FILE = _HERE / "metok.yaml"  # METok's settings for the model, calibrated
SAMPLE_VIDEO = _HERE / "sample.mp4"


class Question(NamedTuple):
    """A question about the sample video and its right answer."""

    question: str
    answer: str


class Scene(NamedTuple):
    """A stretch of the sample video between two hard cuts; times in seconds, end exclusive."""

    start_s: float
    end_s: float
    caption: str


SCENES: tuple[Scene, ...] = tuple(
    Scene(**scene) for scene in json.loads((_HERE / "scenes.json").read_text(encoding="utf-8"))
)

QUESTIONS: tuple[Question, ...] = tuple(
    Question(**question)
    for question in json.loads((_HERE / "questions.json").read_text(encoding="utf-8"))
)
SAMPLE_QUESTION = QUESTIONS[0].question

__all__ = [
    "ALIGNMENT_DIR",
    "CONFIG_FILE",
    "MODEL_DIR",
    "QUESTIONS",
    "SAMPLE_QUESTION",
    "SAMPLE_VIDEO",
    "SCENES",
    "Question",
    "Scene",
]
