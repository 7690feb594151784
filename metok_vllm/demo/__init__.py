"""The embedded demo: a small untrained checkpoint, its alignment towers and a sample video.

All files are written by the scripts in `scripts/`. The weights are random, so answers are
gibberish; what the engine does with the video is real.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent

MODEL_DIR = _HERE / "model"
ALIGNMENT_DIR = MODEL_DIR / "alignment"
SAMPLE_VIDEO = _HERE / "sample.mp4"
SAMPLE_QUESTION = "What colour is the ball that rolls over the grass, and what comes after it?"


class Scene(NamedTuple):
    """A stretch of the sample video between two hard cuts; times in seconds, end exclusive."""

    start_s: float
    end_s: float
    caption: str


SCENES: tuple[Scene, ...] = tuple(
    Scene(**scene) for scene in json.loads((_HERE / "scenes.json").read_text(encoding="utf-8"))
)

__all__ = ["ALIGNMENT_DIR", "MODEL_DIR", "SAMPLE_QUESTION", "SAMPLE_VIDEO", "SCENES", "Scene"]
