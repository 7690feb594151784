"""`metok calibrate` called rightly and wrongly, and what it asks of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.calibration.asks import QUESTIONS, find_asks
from metok_vllm.errors import ConfigError
from metok_vllm.server import cli


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--divergence", "a"], "--divergence must be 0 or more nats, got 'a'"),
        (["--divergence", "-1"], "--divergence must be 0 or more nats, got '-1'"),
        (["--divergence", "0.1", "0.2"], "takes NATS or NAME=NATS ..., got '0.1'"),
        (["--preset-name", "mine"], "--preset-name must be one of quality, balanced, max"),
        (["--frames", "0"], "--frames must be between 1 and"),
        (["--tokens", "0"], "--tokens must be 1 or more, got 0"),
        (["--out", "no-such-folder/metok.yaml"], "no such folder: no-such-folder"),
        (["--questions", "no-such-file"], "cannot read the questions"),
        (["--device", "nowhere"], "--device nowhere cannot be used"),
        (["--metok-config", "no-such-file"], "cannot read the METok configuration file"),
    ],
)
def test_wrong_calls_end_with_two(
    options: list[str], said: str, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["calibrate", "model", "--videos", str(videos), *options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_folder_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "model", "--videos", str(tmp_path)]) == 2
    assert "no videos in" in capsys.readouterr().err


def test_a_model_of_another_family(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert cli.main(["calibrate", str(tmp_path), "--videos", str(videos)]) == 2
    assert "knows LLaVA-OneVision checkpoints" in capsys.readouterr().err
    (tmp_path / "config.json").unlink()
    assert cli.main(["calibrate", str(tmp_path), "--videos", str(videos)]) == 2
    assert "the model cannot be loaded" in capsys.readouterr().err


def test_a_file_that_is_no_video(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    assert cli.main(["calibrate", str(checkpoint), "--videos", str(tmp_path)]) == 2
    assert "broken.mp4: " in capsys.readouterr().err


def test_general_questions_go_round(videos: Path) -> None:
    asks = find_asks(videos, None, num_videos=9, questions_per_video=2)
    assert [ask.video.name for ask in asks] == ["0.mp4", "0.mp4", "1.mp4", "1.mp4"]
    assert [ask.question for ask in asks] == list(QUESTIONS[:4])


def test_questions_of_a_file_and_of_the_folder(videos: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one?\n\n two? \n")
    asks = find_asks(videos, lines, num_videos=2, questions_per_video=1)
    assert [ask.question for ask in asks] == ["one?", "two?"]
    own = tmp_path / "pairs.json"
    own.write_text(json.dumps([{"video": "1.mp4", "question": "why?"}] * 2))
    asks = find_asks(videos, own, num_videos=2, questions_per_video=1)
    assert [(ask.video.name, ask.question) for ask in asks] == [("1.mp4", "why?")] * 2


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
        find_asks(videos, path, num_videos=2, questions_per_video=1)
