"""`metok calibrate` called rightly and wrongly, and what it asks of a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm import cli
from metok_vllm.benchmarks.calibration import report
from metok_vllm.benchmarks.calibration.run import Calibration
from metok_vllm.benchmarks.commands import calibrate
from tests.benchmarks.calibration.conftest import FRAMES, TOKENS


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
        (["--out", "."], "must be a file, but is a folder: ."),
        (["--chart", "."], "must be a file, but is a folder: ."),
        (["--json", "."], "must be a file, but is a folder: ."),
        (["--chart", "curve.xyz"], "--chart must end in one of .png, .pdf"),
        (["--chart", "curve"], "--chart must end in one of .png, .pdf"),
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


def test_what_was_measured_is_said_before_a_file_goes_wrong(
    found: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Neither the tables nor the other files are lost, and nothing ends in a traceback."""

    def fail(*_: object) -> None:
        raise ValueError("this picture is too large")

    monkeypatch.setattr(report, "draw_chart", fail)
    (tmp_path / "metok.yaml").mkdir()  # made by another while it was measured
    arguments = argparse.Namespace(
        model="model",
        frames=FRAMES,
        tokens=TOKENS,
        num_videos=2,
        questions_per_video=1,
        preset_name="balanced",
        out=tmp_path / "metok.yaml",
        chart=tmp_path / "curve.png",
        json=str(tmp_path / "found.json"),
    )
    assert calibrate._report(found, arguments, {}) == 1
    said = capsys.readouterr()
    assert "balanced 10" in said.out
    assert f"written: {tmp_path / 'found.json'}" in said.out.replace("\n", "")
    assert f"cannot write {tmp_path / 'metok.yaml'}" in said.err
    assert "curve.png: this picture is too large" in said.err
    assert json.loads((tmp_path / "found.json").read_text())["presets"]["balanced"]["budget"] == 10
