"""The questions of a calibration, and the videos that are held out from the search."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from metok_vllm.benchmarks.questions.prompts import VideoQuestion, read_questions

QUESTIONS = (
    "What happens in the video?",
    "Which objects can be seen, and what colour are they?",
    "What happens at the beginning of the video?",
    "What happens at the end of the video?",
    "How does the scene change during the video?",
    "Describe one small detail of the video.",
)


def find_questions(
    folder: Path, file: Path | None, num_videos: int, questions_per_video: int, frames: int
) -> list[VideoQuestion]:
    """At most `questions_per_video` about each of `num_videos` videos, evenly spaced by name.

    Raises ConfigError as `read_questions`.
    """
    by_video: dict[Path, list[VideoQuestion]] = defaultdict(list)
    for question in read_questions(folder, frames, file, QUESTIONS):
        by_video[question.video].append(question)
    videos = sorted(by_video)
    count = min(num_videos, len(videos))
    chosen = [videos[number * len(videos) // count] for number in range(count)]
    return [
        question
        for number, video in enumerate(chosen)
        for question in _spread(by_video[video], number, questions_per_video)
    ]


def hold_out(questions: Sequence[VideoQuestion]) -> frozenset[Path]:
    """Every second video, which the search does not see; none if there is one video only."""
    return frozenset(list(dict.fromkeys(question.video for question in questions))[1::2])


def _spread(questions: Sequence[VideoQuestion], number: int, most: int) -> list[VideoQuestion]:
    """Evenly spaced questions of video `number`, starting at another one for each video.

    Files list kinds in order, so the first questions of all videos would be of one kind. Even and
    odd videos rotate separately, because one half is held out.
    """
    most, first = min(most, len(questions)), (number + 1) // 2
    return [
        questions[(first + turn * len(questions) // most) % len(questions)] for turn in range(most)
    ]
