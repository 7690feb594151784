"""Folders of questions: the three ways to write them, and malformed files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from metok_vllm.benchmarks.quality.command import read_cells
from metok_vllm.benchmarks.questions.choices import normalised
from metok_vllm.benchmarks.questions.prompts import read_chance, read_folder
from metok_vllm.benchmarks.questions.settings import DENSE, Setting, presets, read_settings
from metok_vllm.errors import ConfigError
from tests.benchmarks.quality.canned import write_folder


def test_questions_with_and_without_answers(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, [{"question": "Where?", "answer": "here", "kind": "scene"}])
    (tmp_path / "questions.json").write_text(
        json.dumps(
            [
                *json.loads((tmp_path / "questions.json").read_text()),
                {"video": "1.mp4", "question": "Why?"},
            ]
        )
    )
    found = read_folder(tmp_path, 16)
    assert [(a.video.name, a.question, a.kind, a.answer, a.frames) for a in found] == [
        ("0.mp4", "Where?", "scene", "here", 16),
        ("1.mp4", "Where?", "scene", "here", 16),
        ("1.mp4", "Why?", "question", None, 16),
    ]
    assert read_folder(tmp_path, 16, limit=2) == [found[0], found[1]]
    with pytest.raises(ConfigError, match="limit must be 1 or more, got 0"):
        read_folder(tmp_path, 16, limit=0)


def test_questions_by_line_and_general_questions(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, [])
    (tmp_path / "questions.json").unlink()
    general = read_folder(tmp_path, 8)
    assert len(general) > 2
    assert {a.answer for a in general} == {None}
    (tmp_path / "questions.txt").write_text("Who?\n\n  When? \n")
    assert [(a.video.name, a.question) for a in read_folder(tmp_path, 8)] == [
        *(("0.mp4", "Who?"), ("0.mp4", "When?"), ("1.mp4", "Who?"), ("1.mp4", "When?"))
    ]


def test_a_limit_takes_whole_videos_evenly_spread(tmp_path: Path) -> None:
    kinds = [f"kind {n}" for n in range(8)]
    write_folder(tmp_path, 10, [{"question": f"{kind}?", "kind": kind} for kind in kinds])
    found = read_folder(tmp_path, 8, limit=20)  # every fourth question has one of two kinds
    assert [(a.name, a.kind) for a in found] == [
        *(("0.mp4", kind) for kind in kinds),
        *(("3.mp4", kind) for kind in kinds),
        *(("6.mp4", kind) for kind in kinds[:4]),
    ]
    assert len({a.name for a in read_folder(tmp_path, 8, limit=79)}) == 10
    listed = json.loads((tmp_path / "questions.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps([listed[0], *listed[72:]]))
    # The only question of the first video is not enough.
    assert [a.name for a in read_folder(tmp_path, 8, limit=3)] == ["0.mp4", "9.mp4", "9.mp4"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("{}", "must hold a list"),
        ("[]", "no questions in questions.json"),
        ('[{"video": "0.mp4"}]', "needs a video and a question"),
        ('[{"video": "9.mp4", "question": "?"}]', "no video '9.mp4'"),
        ('[{"video": "0.mp4", "question": "?", "answer": 2}]', "answer must be text, got 2"),
        ('[{"video": "0.mp4", "question": "?", "kind": "all"}]', "kind 'all' is that of"),
    ],
)
def test_questions_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    write_folder(tmp_path, 1, [])
    (tmp_path / "questions.json").write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_folder(tmp_path, 8)


def test_chance_by_kind(tmp_path: Path) -> None:
    assert read_chance(tmp_path) == {}
    (tmp_path / "chance.json").write_text('{"scene": 0.25}')
    assert read_chance(tmp_path) == {"scene": 0.25}
    (tmp_path / "chance.json").write_text('{"scene": 25}')
    with pytest.raises(ConfigError, match="shares in 0 to 1"):
        read_chance(tmp_path)


def test_answers_are_compared_without_case_and_full_stop() -> None:
    assert normalised(" A red Ball. ") == normalised("a red ball")
    assert normalised("two.") != normalised("three")
    assert normalised("red, blue") != normalised("blue, red")


def test_folders_and_numbers_of_frames(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "a", 1, [{"question": "Where?"}])
    other = write_folder(tmp_path / "b", 2, [{"question": "Where?"}])

    def cells(folders: list[Path], frames: list[int]) -> list[tuple[int, int]]:
        found = read_cells(folders, frames, lambda count: [DENSE])
        return [(cell.frames, len(cell.questions)) for cell in found]

    assert cells([one], [8, 16]) == [(8, 1), (16, 1)]
    assert cells([one, other], [8, 16]) == [(8, 1), (16, 2)]
    with pytest.raises(ConfigError, match="2 folders and 1 numbers"):
        cells([one, other], [8])
    with pytest.raises(ConfigError, match=r"must be different and 1 or more, got \[8, 8\]"):
        cells([one], [8, 8])


def test_settings_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    entry = {"name": "deep", "request": {"preset": "max"}, "server": {"pruning_layers": [4, 8, 10]}}
    path.write_text(json.dumps([entry]))
    assert read_settings(path) == [
        DENSE,
        Setting("deep", "deep", {"preset": "max"}, server={"pruning_layers": [4, 8, 10]}),
    ]
    path.write_text(json.dumps([asdict(setting) for setting in presets(["max"])]))
    assert read_settings(path) == presets(["max"])
    for content, said in (
        ('[{"line": "x"}]', "a setting has a name"),
        ('[{"name": "x", "rule": "evs"}]', "a setting has a name"),
        ("{}", "must hold a list"),
        ('[{"name": "x", "frames_share": "half"}]', "x: frames_share must be a number, got 'half'"),
        ('[{"name": "x", "server": ["rule"]}]', r"x: server must be an object, got \['rule'\]"),
        ('[{"name": "x", "equal_to": "y"}]', "x: no setting 'y'"),
    ):
        path.write_text(content)
        with pytest.raises(ConfigError, match=said):
            read_settings(path)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("B", True),
        ("b.", True),
        ("(B)", True),
        ("B: blue", True),
        (" Blue. ", True),
        ("A", False),
        ("red", False),
        ("blue car", False),
        ("because", False),
        ("D", False),
        ("", False),
    ],
)
def test_an_answer_to_multiple_choice(text: str, right: bool, tmp_path: Path) -> None:
    entry = {"question": "Which?", "answer": "blue", "choices": ["red", "blue", "green"]}
    write_folder(tmp_path, 1, [])
    (tmp_path / "questions.json").write_text(json.dumps([{"video": "0.mp4", **entry}]))
    (question,) = read_folder(tmp_path, 8)
    assert question.asked == (
        "Which?\nA. red\nB. blue\nC. green\nAnswer with the letter of the right choice."
    )
    assert question.is_right(text) is right


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("red", "different texts"),
        (["red"], "different texts"),
        (["blue", "Blue."], "different texts"),
        (["blue", 3], "different texts"),
        ([["blue"], "red"], "different texts"),
        (["red", "green"], "not among its choices"),
    ],
)
def test_malformed_choices(choices: object, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, 1, [])
    entry = {"video": "0.mp4", "question": "Which?", "answer": "blue", "choices": choices}
    (tmp_path / "questions.json").write_text(json.dumps([entry]))
    with pytest.raises(ConfigError, match=message):
        read_folder(tmp_path, 8)
