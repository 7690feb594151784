"""The questions of a calibration: evenly spaced, of all kinds, one half held out."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from metok_vllm.benchmarks.calibration.prompts import QUESTIONS, find_questions, hold_out

KINDS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight files with four questions each, kinds in order. Nothing here decodes them."""
    entries = []
    for number in range(8):
        (tmp_path / f"{number}.mp4").write_bytes(b"")
        entries += [
            {"video": f"{number}.mp4", "question": f"kind {kind}?"} for kind in range(KINDS)
        ]
    (tmp_path / "unused.mp4").write_bytes(b"")
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    return tmp_path


def test_general_questions_rotate(videos: Path) -> None:
    found = find_questions(videos, None, 9, 2, 8)
    assert [question.video.name for question in found] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4"]
    assert [QUESTIONS.index(question.question) for question in found] == [0, 3, 1, 4]


def test_questions_of_a_named_file(videos: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one?\n\n two? \n")
    assert [q.question for q in find_questions(videos, lines, 2, 1, 8)] == ["one?", "two?"]
    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([{"video": "1.mp4", "question": "why?"}]))
    found = find_questions(videos, pairs, 2, 1, 8)
    assert [(q.video.name, q.question) for q in found] == [("1.mp4", "why?")]


@pytest.mark.parametrize("each", [1, 2])
def test_both_halves_have_questions_of_all_kinds(folder: Path, each: int) -> None:
    found = find_questions(folder, None, 8, each, 8)
    assert len(found) == 8 * each
    held = hold_out(found)
    halves: dict[bool, set[str]] = defaultdict(set)
    for question in found:
        halves[question.video in held].add(question.question)
    assert [len(kinds) for kinds in halves.values()] == [KINDS, KINDS]
    everything = find_questions(folder, None, 8, 9, 8)
    assert len(set(everything)) == len(everything) == 8 * KINDS


def test_every_second_video_is_held_out(folder: Path) -> None:
    found = find_questions(folder, None, 8, 2, 8)
    assert {path.name for path in hold_out(found)} == {"1.mp4", "3.mp4", "5.mp4", "7.mp4"}
    assert hold_out(found[:2]) == frozenset()
