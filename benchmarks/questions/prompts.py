"""Questions about the videos of a folder, read from the files beside them.

`questions.json` is a list of {"video", "question"} with optional "answer", "kind" and "choices".
`questions.txt` has one question a line for every video. Without either, general questions are used.
An optional `chance.json` maps each kind to the accuracy of guessing.
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
from metok_vllm.benchmarks.questions.choices import LETTERS, chosen, normalised, with_choices
from metok_vllm.errors import ConfigError, MediaError
from metok_vllm.video import probe

QUESTION = "question"  # the kind of a question without one
ALL = "all"  # the kind of figures over all kinds, so of no question
FREE, CHOICE = "free-form", "multiple choice"  # the same over the questions of a form
IN_FOLDER = ("questions.json", "questions.txt")  # the first that exists is read
CACHED_VIDEOS = 8


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a video of which `frames` are sampled; `answer` is None if unknown.

    `name` is the path inside the folder: videos of two subfolders may share a file name. With
    `choices` the question is multiple choice, and `answer` is one of them.
    """

    video: Path
    name: str
    question: str
    kind: str
    answer: str | None
    frames: int
    choices: tuple[str, ...] = ()

    @property
    def asked(self) -> str:
        """The text that is sent."""
        return with_choices(self.question, self.choices)

    @property
    def form(self) -> str:
        """FREE or CHOICE."""
        return CHOICE if self.choices else FREE

    @property
    def label(self) -> str:
        """The kind under which its figures are reported: the forms are kept apart."""
        return f"{self.kind}, choice" if self.choices else self.kind

    def is_right(self, text: str) -> bool | None:
        """Whether an answer is the right one; None if that is unknown."""
        if self.answer is None:
            return None
        return normalised(chosen(text, self.choices)) == normalised(self.answer)


def read_folder(folder: Path, frames: int, limit: int | None = None) -> list[VideoQuestion]:
    """All questions of a folder, or `limit` of them.

    A limit keeps the questions of whole, evenly spaced videos and cuts those of the last one.
    Raises ConfigError as `read_questions`, and for a limit below 1.
    """
    found = read_questions(folder, frames)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more, got {limit}", "limit")
    if limit is None or limit >= len(found):
        return found
    return _of_whole_videos(found, limit)


def read_questions(
    folder: Path, frames: int, file: Path | None = None, general: Sequence[str] = QUESTIONS
) -> list[VideoQuestion]:
    """The questions of `file`, else of the folder's own file, else `general` about each video.

    Raises ConfigError for a folder without videos and for a malformed file.
    """
    listed = file or next((folder / name for name in IN_FOLDER if (folder / name).is_file()), None)
    if listed is not None and listed.suffix.lower() == ".json":
        found = [_question(folder, entry, frames) for entry in _entries(listed)]
    else:
        lines = [] if listed is None else _lines(listed)
        if file is None:
            lines = lines or list(general)
        videos = VideoFolder(folder, seed=0).files
        found = [
            VideoQuestion(video, video.name, line, QUESTION, None, frames)
            for video in videos
            for line in lines
        ]
    if not found:
        assert listed is not None
        raise ConfigError(f"no questions in {listed.name}", "questions")
    return found


def read_chance(folder: Path) -> dict[str, float]:
    """The accuracy of guessing by kind, in 0 to 1; empty if the folder does not give it."""
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


@lru_cache(maxsize=CACHED_VIDEOS)
def data_url(video: Path) -> str:
    """The file as a data URL."""
    media_type = mimetypes.guess_type(video.name)[0] or "video/mp4"
    return f"data:{media_type};base64,{base64.b64encode(video.read_bytes()).decode()}"


@cache
def frames_in(video: Path) -> int:
    """The number of frames of the file. Raises MediaError with the file's name."""
    try:
        return probe(video.read_bytes(), LIMITS).num_frames
    except MediaError as error:
        raise MediaError(f"{video.name}: {error}", error.reason) from error


def _of_whole_videos(found: Sequence[VideoQuestion], limit: int) -> list[VideoQuestion]:
    # Evenly spaced single questions could all be of one kind, since kinds repeat in a fixed order.
    by_video: dict[str, list[VideoQuestion]] = {}
    for question in found:
        by_video.setdefault(question.name, []).append(question)
    videos = list(by_video.values())
    for count in range(1, len(videos) + 1):
        spread = [videos[i * len(videos) // count] for i in range(count)]
        chosen = [question for of_video in spread for question in of_video]
        if len(chosen) >= limit:
            return chosen[:limit]
    raise AssertionError("the limit is below the number of questions")


def _question(folder: Path, entry: Any, frames: int) -> VideoQuestion:
    if not isinstance(entry, Mapping) or not {"video", "question"} <= entry.keys():
        raise ConfigError(f"an entry needs a video and a question, got {entry!r:.80}", "questions")
    for key in ("video", "question", "answer", "kind"):
        if not isinstance(entry.get(key), str | None):
            raise ConfigError(f"{key} must be text, got {entry[key]!r:.80}", "questions")
    if not entry["video"] or not entry["question"]:
        raise ConfigError(f"an entry needs a video and a question, got {entry!r:.80}", "questions")
    video = folder / entry["video"]
    if not video.is_file():
        raise ConfigError(f"there is no video {entry['video']!r} beside its questions", "questions")
    kind = entry.get("kind") or QUESTION
    if kind in (ALL, FREE, CHOICE):
        raise ConfigError(f"kind {kind!r} is that of the figures over all kinds", "questions")
    name = Path(os.path.relpath(video, folder)).as_posix()
    answer = entry.get("answer")
    choices = _choices(entry.get("choices"), answer)
    return VideoQuestion(video, name, entry["question"], kind, answer, frames, choices)


def _choices(found: object, answer: str | None) -> tuple[str, ...]:
    if found is None:
        return ()
    listed = found if isinstance(found, list) else []
    texts = tuple(text for text in listed if isinstance(text, str) and text)
    different = {normalised(text) for text in texts}
    if not 2 <= len(different) == len(texts) == len(listed) <= len(LETTERS):
        raise ConfigError(f"choices must be different texts, 2 to 26, got {found!r:.80}", "choices")
    if answer is not None and normalised(answer) not in different:
        raise ConfigError(f"the answer {answer!r:.80} is not among its choices", "choices")
    return texts


def _entries(path: Path) -> Sequence[Any]:
    content = _json(path)
    if not isinstance(content, list):
        raise ConfigError(f"{path.name} must hold a list", "questions")
    return content


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the questions: {error}", "questions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8: {error}", "questions") from error
    return [line.strip() for line in lines if line.strip()]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the questions: {error}", "questions") from error
    except ValueError as error:
        raise ConfigError(f"{path.name} is not JSON: {error}", "questions") from error
