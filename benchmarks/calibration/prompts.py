"""What a model is asked: the videos of a folder and questions, the user's or general ones.

A folder's own `questions.json` or `questions.txt` is read as `metok bench --quality` reads it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.videos import VideoFolder
from metok_vllm.errors import ConfigError

QUESTIONS = (
    "What happens in the video?",
    "Which objects can be seen, and what colour are they?",
    "What happens at the beginning of the video?",
    "What happens at the end of the video?",
    "How does the scene change during the video?",
    "Describe one small detail of the video.",
)
IN_FOLDER = ("questions.json", "questions.txt")  # the first that is there
ENTRIES = "a JSON list of objects with the texts video and question"


@dataclass(frozen=True)
class Ask:
    """One question about one file."""

    video: Path
    question: str


def find_asks(
    folder: Path, questions: Path | None, num_videos: int, questions_per_video: int
) -> list[Ask]:
    """At most so many questions about each of `num_videos` videos, spread evenly over their names.

    `questions` is a file with one a line, asked of the videos in turn, or a JSON list of `video`
    and `question`; where none is named, the folder's own file, then general questions.
    Raises ConfigError for a folder without videos and for files that say something else.
    """
    own = (folder / name for name in IN_FOLDER)
    questions = questions or next((path for path in own if path.is_file()), None)
    if questions is not None and questions.suffix.lower() == ".json":
        asked: Mapping[Path, Sequence[str]]
        asked = _of_videos(_read(questions), folder, questions.name)
        videos: Sequence[Path] = sorted(asked)
    else:
        lines = QUESTIONS if questions is None else _lines(_read(questions), questions.name)
        videos = VideoFolder(folder, seed=0).files
        asked = dict.fromkeys(videos, lines)
    return [
        Ask(video, question)
        for number, video in enumerate(_spread(videos, num_videos))
        for question in _some(asked[video], number, questions_per_video)
    ]


def hold_out(asks: Sequence[Ask]) -> frozenset[Path]:
    """Every second video: those that a search does not see. Of one video none is held out."""
    return frozenset(list(dict.fromkeys(ask.video for ask in asks))[1::2])


def _spread(files: Sequence[Path], count: int) -> list[Path]:
    count = min(count, len(files))
    return [files[number * len(files) // count] for number in range(count)]


def _some(questions: Sequence[str], number: int, most: int) -> list[str]:
    """Evenly spaced ones of a video's questions, from another one on for another video.

    Files have their kinds in order, so the first ones would ask one kind of every video. The even
    and the odd videos go through the questions by themselves, as one half may be held out.
    """
    most, first = min(most, len(questions)), (number + 1) // 2
    return [
        questions[(first + turn * len(questions) // most) % len(questions)] for turn in range(most)
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the questions: {error}", "questions") from error


def _lines(text: str, name: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"no question in {name}", "questions")
    return lines


def _of_videos(text: str, folder: Path, name: str) -> dict[Path, list[str]]:
    """Each video's questions, in the order of the file."""
    try:
        entries: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} must hold {ENTRIES}: {error}", "questions") from error
    if not isinstance(entries, list):
        raise ConfigError(f"{name} must hold {ENTRIES}", "questions")
    asked = defaultdict(list)
    for entry in entries:
        video, question = _texts(entry)
        if not video or not question:
            raise ConfigError(f"{name} must hold {ENTRIES}, got {str(entry)[:80]!r}", "questions")
        file = folder / video
        if not file.is_file():
            raise ConfigError(f"{name} names {video!r}, which is not there", "questions")
        asked[file].append(question)
    if not asked:
        raise ConfigError(f"{name} has no question about the videos in the folder", "questions")
    return asked


def _texts(entry: object) -> tuple[str, str]:
    """Video and question of an entry, empty where there is no such text."""
    if not isinstance(entry, Mapping):
        return "", ""
    video, question = entry.get("video"), entry.get("question")
    if not isinstance(video, str) or not isinstance(question, str):
        return "", ""
    return video.strip(), question.strip()
