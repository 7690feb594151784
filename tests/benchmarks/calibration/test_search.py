"""A model that copies visual information only up to a known layer: calibration finds that layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metok_vllm import cli
from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import StageLayout
from tests.benchmarks.calibration.checkpoints import LAYERS, write_deaf


@pytest.mark.parametrize("deaf_from", [3, pytest.param(5, marks=pytest.mark.thorough)])
def test_calibration_finds_the_layer(
    deaf_from: int, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropping from that layer on has no effect, one layer earlier it has; p2 is that layer."""
    write_deaf(tmp_path / "model", deaf_from)
    base = tmp_path / "base.yaml"
    base.write_text("key_event_ratio: 1.0\n")
    out, found = tmp_path / "metok.yaml", tmp_path / "found.json"
    options = (
        *("--videos", str(videos), "--out", str(out), "--json", str(found)),
        *("--frames", "8", "--tokens", "3", "--questions-per-video", "1"),
        *("--metok-config", str(base), "--chart", str(tmp_path / "curve.png")),
    )
    # With a budget of nearly 0, tokens are dropped only where they have no effect.
    nothing = ["calibrate", str(tmp_path / "model"), *options, "--divergence", "1e-7"]
    assert cli.main(nothing) == 0, capsys.readouterr().err
    served = METokConfig.load(config_file=out, environ={})
    assert served.pruning_layers is not None
    assert served.pruning_layers[0] >= deaf_from
    preset = json.loads(found.read_text())["presets"]["balanced"]
    drop = json.loads(found.read_text())["curves"]["drop"]
    assert preset["least_drop_layer"] == deaf_from
    for point in drop:
        worst = max(point["first"], point["following"])
        assert (worst < 1e-7) == (point["layer"] >= deaf_from), point
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

    # A budget slightly below the divergence of dropping one layer earlier.
    earlier = drop[deaf_from - 1]
    budget = 0.999 * max(earlier["first"], earlier["following"])
    arguments = ["calibrate", str(tmp_path / "model"), *options, "--divergence", f"{budget}"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    served = METokConfig.load(config_file=out, environ={})
    assert served.pruning_layers is not None
    assert served.pruning_layers[2] == deaf_from
    assert StageLayout.of(served.pruning_layers, LAYERS).boundaries == served.pruning_layers
    preset = json.loads(found.read_text())["presets"]["balanced"]
    assert preset["parts"]["drop_from_p2"]["following"] < 1e-7
    assert max(preset["divergence"]["first"], preset["divergence"]["following"]) <= budget
    assert preset["config"]["pruning_layers"] == list(served.pruning_layers)
    # The file defines the preset with the fields that a request may change.
    assert served.presets is not None
    assert set(served.presets) == {"balanced"}
    config = served.for_request({"preset": "balanced"})
    assert (config.keep_ratio, config.key_event_ratio) == (
        preset["config"]["keep_ratio"],
        1.0,
    )
