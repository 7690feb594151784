"""What calibration asks of a folder: its own questions, some of them, and what it holds out."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.calibration.prompts import QUESTIONS, VideoQuestion, find_questions, hold_out
from metok_vllm.benchmarks.questions.prompts import read_folder
from metok_vllm.errors import ConfigError

KINDS = 4


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A folder of files with four questions each, kinds in order, and one that nobody asks about.

    Nothing here decodes them.
    """
    entries = []
    for number in range(8):
        (tmp_path / f"{number}.mp4").write_bytes(b"")
        told = [{"video": f"{number}.mp4", "question": f"kind {kind}?"} for kind in range(KINDS)]
        entries += [{**entry, "kind": "known", "answer": "yes"} for entry in told]
    (tmp_path / "nobody.mp4").write_bytes(b"")
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    return tmp_path


def test_general_questions_go_round(videos: Path) -> None:
    asks = find_questions(videos, None, num_videos=9, questions_per_video=2)
    assert [ask.video.name for ask in asks] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4"]
    assert [QUESTIONS.index(ask.question) for ask in asks] == [0, 3, 1, 4]


def test_questions_of_a_named_file(videos: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one?\n\n two? \n")
    asks = find_questions(videos, lines, num_videos=2, questions_per_video=1)
    assert [ask.question for ask in asks] == ["one?", "two?"]
    own = tmp_path / "pairs.json"
    own.write_text(json.dumps([{"video": "1.mp4", "question": "why?"}]))
    asks = find_questions(videos, own, num_videos=2, questions_per_video=1)
    assert [(ask.video.name, ask.question) for ask in asks] == [("1.mp4", "why?")]


@pytest.mark.parametrize("each", [1, 2])
def test_some_questions_of_a_folder_cover_its_kinds(asked: Path, each: int) -> None:
    """So many a video, over all kinds: among the videos held out as among the others."""
    asks = find_questions(asked, None, num_videos=8, questions_per_video=each)
    assert len(asks) == 8 * each
    assert all(ask.video.name != "nobody.mp4" for ask in asks)
    held = hold_out(asks)
    halves: dict[bool, set[str]] = defaultdict(set)
    for ask in asks:
        halves[ask.video in held].add(ask.question)
    assert [len(kinds) for kinds in halves.values()] == [KINDS, KINDS]
    everything = find_questions(asked, None, num_videos=8, questions_per_video=9)
    assert len(set(everything)) == len(everything) == 8 * KINDS


def test_a_folder_means_the_same_to_the_quality_harness(asked: Path) -> None:
    def pairs() -> tuple[set[VideoQuestion], set[VideoQuestion]]:
        quality = read_folder(asked, frames=8)
        return (
            set(find_questions(asked, None, num_videos=99, questions_per_video=99)),
            {VideoQuestion(found.video, found.question) for found in quality},
        )

    ours, theirs = pairs()
    assert ours == theirs
    (asked / "questions.txt").write_text("one?\n\n two? \n")
    assert pairs() == (ours, theirs), "questions.json comes first"
    (asked / "questions.json").unlink()
    ours, theirs = pairs()
    assert ours == theirs
    assert {ask.question for ask in ours} == {"one?", "two?"}


def test_every_second_video_is_held_out() -> None:
    videos = [Path(name) for name in "abcde"]
    asks = [VideoQuestion(video, question) for video in videos for question in ("one?", "two?")]
    assert hold_out(asks) == {Path("b"), Path("d")}
    assert hold_out(asks[:4]) == {Path("b")}
    assert hold_out(asks[:2]) == frozenset()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "must hold a JSON list"),
        ({}, "must hold a JSON list"),
        ([], "has no question about the videos"),
        ([{"video": "0.mp4"}], "must hold a JSON list"),
        ([{"video": "9.mp4", "question": "?"}], "names '9.mp4', which is not there"),
    ],
)
def test_question_files_that_say_something_else(
    content: Any, said: str, videos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "questions.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=said):
        find_questions(videos, path, num_videos=2, questions_per_video=1)
