"""What a model is asked: the videos of a folder and questions, the user's or general ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.throughput.folder import VideoFolder
from metok_vllm.errors import ConfigError

QUESTIONS = (
    "What happens in the video?",
    "Which objects can be seen, and what colour are they?",
    "What happens at the beginning of the video?",
    "What happens at the end of the video?",
    "How does the scene change during the video?",
    "Describe one small detail of the video.",
)
IN_FOLDER = "questions.json"


@dataclass(frozen=True)
class Ask:
    """One question about one file."""

    video: Path
    question: str


def find_asks(
    folder: Path, questions: Path | None, num_videos: int, questions_per_video: int
) -> list[Ask]:
    """Questions about `num_videos` of the folder's videos, spread evenly over their names.

    `questions` is a file with one a line, asked of the videos in turn, or a JSON list of `video`
    and `question` as the folder's own `questions.json`, which is used where no file is named.
    Raises ConfigError for a folder without videos and for files that say something else.
    """
    videos = _spread(VideoFolder(folder, seed=0).files, num_videos)
    own = folder / IN_FOLDER
    if questions is None and own.is_file():
        questions = own
    if questions is None:
        return _in_turn(videos, QUESTIONS, questions_per_video)
    try:
        text = questions.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the questions: {error}", "questions") from error
    if questions.suffix.lower() == ".json":
        return _pairs(text, folder, videos, questions.name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"no question in {questions.name}", "questions")
    return _in_turn(videos, lines, questions_per_video)


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    count = min(count, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def _in_turn(videos: Sequence[Path], questions: Sequence[str], each: int) -> list[Ask]:
    each = min(each, len(questions))
    return [
        Ask(video, questions[(number * each + turn) % len(questions)])
        for number, video in enumerate(videos)
        for turn in range(each)
    ]


def _pairs(text: str, folder: Path, videos: Sequence[Path], name: str) -> list[Ask]:
    wanted = "a JSON list of objects with the texts video and question"
    try:
        entries: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} must hold {wanted}: {error}", "questions") from error
    if not isinstance(entries, list):
        raise ConfigError(f"{name} must hold {wanted}", "questions")
    asks = []
    for entry in entries:
        video, question = _texts(entry)
        if not video or not question:
            raise ConfigError(f"{name} must hold {wanted}, got {str(entry)[:80]!r}", "questions")
        file = folder / video
        if not file.is_file():
            raise ConfigError(f"{name} names {video!r}, which is not there", "questions")
        if file in videos:
            asks.append(Ask(file, question))
    if not asks:
        raise ConfigError(f"{name} has no question about the videos in the folder", "questions")
    return asks


def _texts(entry: object) -> tuple[str, str]:
    """Video and question of an entry, empty where there is no such text."""
    if not isinstance(entry, dict):
        return "", ""
    video, question = entry.get("video"), entry.get("question")
    if not isinstance(video, str) or not isinstance(question, str):
        return "", ""
    return video.strip(), question.strip()
