"""`metok calibrate` with invalid options, and with files that cannot be written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from metok_vllm import cli
from metok_vllm.benchmarks.calibration import report
from metok_vllm.benchmarks.calibration.run import Calibration
from metok_vllm.benchmarks.commands import calibrate, calibrate_options
from metok_vllm.demo import ALIGNMENT_DIR, CONFIG_FILE, MODEL_DIR
from tests.benchmarks.calibration.conftest import FRAMES, TOKENS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--divergence", "-1"], "--divergence must be 0 or more nats, got '-1'"),
        (["--divergence", "0.1", "0.2"], "takes NATS or NAME=NATS ..., got '0.1'"),
        (["--preset-name", "mine"], "--preset-name must be one of quality, balanced, max"),
        (["--frames", "0"], "--frames must be between 1 and"),
        (["--out", "no-such-folder/metok.yaml"], "no such folder: no-such-folder"),
        (["--chart", "curve.xyz"], "--chart must end in one of .png, .pdf"),
        (["--questions", "no-such-file"], "cannot read the questions"),
        (["--device", "nowhere"], "--device nowhere cannot be used"),
    ],
)
def test_invalid_options_exit_with_two(
    options: list[str], message: str, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["calibrate", "model", "--videos", str(videos), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["demo"], ["--checkpoint", "demo"]])
def test_the_embedded_model_is_named_demo(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    calibrate_options.add_arguments(parser)
    named = parser.parse_args([*words, "--videos", "folder"])
    calibrate_options.name_model(named)
    assert named.model == str(MODEL_DIR)
    assert named.alignment_model == str(ALIGNMENT_DIR)
    assert named.metok_config == CONFIG_FILE
    own = parser.parse_args([*words, "--videos", "folder", "--alignment-model", "other"])
    calibrate_options.name_model(own)
    assert own.alignment_model == "other"


@pytest.mark.parametrize("words", [[], ["model", "--checkpoint", "demo"]])
def test_one_model_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", *words, "--videos", "folder"]) == 2
    assert "name one of MODEL and --checkpoint" in capsys.readouterr().err


def test_an_unsupported_model_is_refused(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert cli.main(["calibrate", str(tmp_path), "--videos", str(videos)]) == 2
    assert "supports LLaVA-OneVision" in capsys.readouterr().err


def test_a_broken_video_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 100)
    assert cli.main(["calibrate", str(checkpoint), "--videos", str(tmp_path)]) == 2
    assert "broken.mp4: " in capsys.readouterr().err


def test_the_result_is_printed_before_a_file_fails(
    found: Calibration,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("this picture is too large")

    monkeypatch.setattr(report, "draw_chart", fail)
    (tmp_path / "metok.yaml").mkdir()
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
    captured = capsys.readouterr()
    assert "balanced 10" in captured.out
    assert f"cannot write {tmp_path / 'metok.yaml'}" in captured.err
    assert "curve.png: this picture is too large" in captured.err
    assert json.loads((tmp_path / "found.json").read_text())["presets"]["balanced"]["budget"] == 10
