"""`python -m metok_vllm.benchmarks.quality` against a server: settings, frontier, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.quality import __main__ as program
from metok_vllm.demo import MODEL_DIR
from tests.benchmarks.quality.canned import CannedServer, canned_server, write_folder


def same(_question: str, _metok: dict[str, Any] | None) -> str:
    return "same"


def run(tmp_path: Path, *options: str, server: CannedServer | None = None) -> int:
    folder = write_folder(tmp_path / "videos", 2, [{"question": "Where?"}])
    with canned_server(server or CannedServer(same)) as endpoint:
        where = ["--folder", str(folder), "--base-url", endpoint.url, "--out", str(tmp_path)]
        return program.main([*where, *options])


FRONTIER = ("--settings", "frontier", "--model", str(MODEL_DIR), "--dtype", "float32")


def test_the_frontier_reports_the_gaps_of_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This server holds the same number of tokens under all settings with all frames."""
    assert run(tmp_path, *FRONTIER, "--frames", "8") == 0
    captured = capsys.readouterr()
    assert "The largest gap at equal KV: 8 frames, fewer frames = " in captured.out
    assert "metok: not at equal KV: 8 frames, fewer frames = max: held " in captured.err
    assert "not at equal KV: 8 frames, random = max" not in captured.err
    record = json.loads((tmp_path / "result.json").read_text())
    found = {gap["setting"]: gap for gap in record["equal_kv"]}
    assert (found["random = max"]["target"], found["random = max"]["gap"]) == ("max", 0)
    assert abs(found["fewer frames = max"]["gap"]) > 0.02


def test_the_frontier_is_refused_if_settings_would_not_be_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *FRONTIER, "--frames", "16") == 2
    assert "0.mp4 has 8 frames and --frames is 16" in capsys.readouterr().err
    (tmp_path / "metok.yaml").write_text("pruning_layers: [3, 6, 9]\n")
    server = CannedServer(same)
    own = ("--metok-config", str(tmp_path / "metok.yaml"))
    assert run(tmp_path, *FRONTIER, *own, "--frames", "8", server=server) == 2
    error = capsys.readouterr().err
    assert "the server prunes at layers [2, 4, 8], and equal KV was solved for [3, 6, 9]" in error
    assert len(server.bodies) == 2  # dense alone was measured


@pytest.mark.parametrize("settings", ["presets", "stages", "FILE"])
def test_the_servers_own_file_is_a_setting(
    settings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metok.yaml").write_text("stages: [1, 2]\n")
    file = tmp_path / "settings.json"
    file.write_text('[{"name": "evict", "request": {"decode_keep": 0.5}}]')
    settings = settings.replace("FILE", str(file))
    options = ("--settings", settings, "--metok-config", str(tmp_path / "metok.yaml"))
    server = CannedServer(same)
    assert run(tmp_path, *options, "--frames", "8", "--output-len", "40", server=server) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    names = [setting["name"] for setting in record["cells"][0]["settings"]]
    assert names[-1] == "as served"
    assert [body for body in server.bodies if "metok" not in body]
    refused = {"presets": [], "stages": ["stage 3", "stages 1+2+3"]}.get(settings, ["evict"])
    error = capsys.readouterr().err
    for name in refused:
        assert name not in names
        assert f"metok: {name} is left out, the server would refuse it" in error
    assert record["configuration"]["output_len"] == 40
    assert {body["max_tokens"] for body in server.bodies} == {40}
