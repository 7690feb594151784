"""What is asked: the videos of a folder and the questions that stand beside them.

`questions.json` is a list of {"video", "question"} with "answer" and "kind" where they are known;
`questions.txt` has a question a line, asked about every video; without either, general questions.
`chance.json`, where there is one, maps kinds to what guessing gets.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.videos import LIMITS, VideoFolder
from metok_vllm.benchmarks.client.workloads import QUESTIONS
from metok_vllm.errors import ConfigError, MediaError
from metok_vllm.video import probe

QUESTION = "question"  # the kind of a question whose kind nobody told
ALL = "all"  # the kind of figures over all kinds, so of no question
VIDEOS_AT_HAND = 8


@dataclass(frozen=True)
class Asked:
    """A question about a video of which `frames` are looked at; `answer` None where unknown.

    `name` is the video's place in its folder: videos of two subfolders may share a file name.
    """

    video: Path
    name: str
    question: str
    kind: str
    answer: str | None
    frames: int


def read_folder(folder: Path, frames: int, limit: int | None = None) -> list[Asked]:
    """All questions of a folder, or `limit` of them: those of whole videos, evenly spread, of which
    the last is cut.

    Raises ConfigError for a folder without videos and for questions that cannot be used.
    """
    listed = folder / "questions.json"
    if listed.exists():
        found = [_asked(folder, entry, frames) for entry in _entries(listed)]
    else:
        questions = _lines(folder / "questions.txt") or QUESTIONS
        videos = VideoFolder(folder, seed=0).files
        found = [Asked(v, v.name, q, QUESTION, None, frames) for v in videos for q in questions]
    if not found:
        raise ConfigError(f"no questions in {listed.name}", "questions")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, got {limit}", "limit")
    if limit is None or limit >= len(found):
        return found
    return _of_whole_videos(found, limit)


def read_chance(folder: Path) -> dict[str, float]:
    """What guessing gets by kind, in 0 to 1; empty where the folder does not say."""
    path = folder / "chance.json"
    if not path.exists():
        return {}
    content = _json(path)
    good = isinstance(content, dict) and all(
        isinstance(share, int | float) and 0 <= share <= 1 for share in content.values()
    )
    if not good:
        raise ConfigError(f"{path.name} must map kinds to shares in 0 to 1", "chance")
    return {str(kind): float(share) for kind, share in content.items()}


def normalised(text: str) -> str:
    """An answer as it is compared: without case, outer white space and a closing full stop."""
    return text.strip().casefold().removesuffix(".").rstrip()


@lru_cache(maxsize=VIDEOS_AT_HAND)
def data_url(video: Path) -> str:
    """The file as a data URL."""
    media_type = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{media_type};base64,{base64.b64encode(video.read_bytes()).decode()}"


@cache
def frames_in(video: Path) -> int:
    """Frames of the file. Raises MediaError naming a file that is no video."""
    try:
        return probe(video.read_bytes(), LIMITS).num_frames
    except MediaError as error:
        raise MediaError(f"{video.name}: {error}", error.reason) from error


def _of_whole_videos(found: Sequence[Asked], limit: int) -> list[Asked]:
    # Single questions at even distances would fall in step with a fixed order of kinds.
    by_video: dict[str, list[Asked]] = {}
    for asked in found:
        by_video.setdefault(asked.name, []).append(asked)
    videos = list(by_video.values())
    for count in range(1, len(videos) + 1):
        spread = [videos[i * len(videos) // count] for i in range(count)]
        taken = [asked for of_video in spread for asked in of_video]
        if len(taken) >= limit:
            return taken[:limit]
    raise AssertionError("all videos together have no fewer questions than the limit")


def _asked(folder: Path, entry: Any, frames: int) -> Asked:
    if not isinstance(entry, Mapping) or not {"video", "question"} <= entry.keys():
        raise ConfigError(f"an entry needs a video and a question, got {entry!r:.80}", "questions")
    for key in ("video", "question", "answer", "kind"):
        if not isinstance(entry.get(key), str | None):
            raise ConfigError(f"{key} must be text, got {entry[key]!r:.80}", "questions")
    video = folder / entry["video"]
    if not video.is_file():
        raise ConfigError(f"there is no video {entry['video']!r} beside its questions", "questions")
    kind = entry.get("kind") or QUESTION
    if kind == ALL:
        raise ConfigError(f"kind {ALL!r} is that of the figures over all kinds", "questions")
    name = Path(os.path.relpath(video, folder)).as_posix()
    return Asked(video, name, entry["question"], kind, entry.get("answer"), frames)


def _entries(path: Path) -> Sequence[Any]:
    content = _json(path)
    if not isinstance(content, list):
        raise ConfigError(f"{path.name} must hold a list", "questions")
    return content


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8: {error}", "questions") from error
    return [line.strip() for line in lines if line.strip()]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path.name} is not JSON: {error}", "questions") from error
