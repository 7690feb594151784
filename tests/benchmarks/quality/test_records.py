"""The result files of a quality measurement hold its rows."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from metok_vllm import cli
from metok_vllm.benchmarks.quality.charts import draw_chart
from metok_vllm.benchmarks.quality.harness import Cell
from metok_vllm.benchmarks.quality.records import ESTIMATES, one_line, read_rows, result, write_csv
from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.quality.tables import failures, percent
from metok_vllm.benchmarks.questions.bootstrap import Estimate
from metok_vllm.benchmarks.questions.prompts import ALL
from metok_vllm.benchmarks.questions.settings import DENSE, presets
from metok_vllm.benchmarks.throughput.records import write_json
from tests.benchmarks.quality.canned import GEOMETRY, CannedServer, canned_server, write_folder


def row(setting: str, line: str, kind: str = ALL, **changes: Any) -> Row:
    known = {
        "videos": 3,
        "questions": 6,
        "failed": 0,
        "lessened": 0,
        "chance": 0.25,
        "accuracy": Estimate(0.75, 0.5, 1.0),
        "difference": Estimate(-0.125, -0.25, 0.0),
        "agreement": Estimate(2 / 3, 0.5, 0.9),
        "kl": Estimate(0.1, 0.0, 0.3),
        "kv_tokens": 1000.5,
        "kv_bytes": 4096.0,
        "kv_share": 0.125,
        "flops": 1e9 / 3,
        "flops_share": 0.2,
    }
    return Row(setting, line, 16, kind, **{**known, **changes})


ROWS = [
    row("dense", "dense", difference=None, kv_bytes=32768.0),
    row("dense", "dense", "count", difference=None),
    row("max", "METok"),
    row(
        *("max", "METok", "count"),
        accuracy=None,
        difference=None,
        chance=None,
        agreement=Estimate(1.0, None, None),  # of one video
        kv_bytes=None,
    ),
]


def test_json_and_csv_hold_the_rows(tmp_path: Path) -> None:
    cells = [Cell(16, (), tuple(presets(["max"])))]
    record = result(ROWS, cells, {"cores": 2}, {"seed": 0}, GEOMETRY)
    write_json(tmp_path / "result.json", record)
    read = json.loads((tmp_path / "result.json").read_text())
    assert read == record
    assert read_rows(read) == ROWS
    assert read["cells"][0]["settings"][0] == asdict(DENSE)
    assert read["model"]["grid"] == 8
    write_csv(tmp_path / "rows.csv", ROWS)
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, expected in zip(lines, ROWS, strict=True):
        flat = asdict(expected)
        for name in ESTIMATES:
            three = flat.pop(name) or dict.fromkeys(("mean", "low", "high"))
            low, high = f"{name}_low", f"{name}_high"
            flat |= {name: three["mean"], low: three["low"], high: three["high"]}
        assert line == {name: "" if v is None else str(v) for name, v in flat.items()}
    short = json.loads(one_line(record))
    assert [r["setting"] for r in short["rows"]] == ["dense", "max"]
    assert "\n" not in one_line(record)


def test_failures_name_the_setting() -> None:
    assert failures([row("max", "METok", failed=2, lessened=1)]) == [
        "16 frames, max: 2 of 6 questions failed",
        "16 frames, max: 1 of 6 prompts were not pruned",
    ]


def test_shares_are_shown_with_their_intervals() -> None:
    assert percent(Estimate(0.75, 0.5, 1.0)) == "75.0 [50.0, 100.0]"
    assert percent(Estimate(-0.125, -0.25, 0.0), "+.1f") == "-12.5 [-25.0, +0.0]"
    assert percent(Estimate(1.0, None, None)) == "100.0 [-]"


def test_the_chart_needs_two_settings(tmp_path: Path) -> None:
    path = draw_chart(result(ROWS, [], {}, {}, None), tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw_chart(result(ROWS[:1], [], {}, {}, None), tmp_path) is None


def same(_question: str, _metok: dict[str, Any] | None) -> str:
    return "same"


def test_metok_bench_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "videos", 2, [{"question": "Where?"}])
    server = CannedServer(same)
    with canned_server(server) as endpoint:
        where = ["--base-url", endpoint.url, "--result-dir", str(tmp_path / "out")]
        options = ["--frames", "8", "--presets", "max", "--max-concurrency", "1"]
        assert cli.main(["bench", "--quality", str(folder), *where, *options]) == 0
        again = ["--presets", "max", "--result-dir", str(tmp_path / "again"), "--frames", "8"]
        bodies = list(server.bodies)
        captured = capsys.readouterr()
        same_again = ["bench", "--quality", str(folder), "--base-url", endpoint.url, *again]
        assert cli.main([*same_again, "--json"]) == 0
    assert "{" not in captured.out
    assert "100.0 [100.0, 100.0]" in captured.out  # no cell is cut in a pipe
    assert captured.err.startswith("metok: waiting for the server\n")
    short = json.loads(capsys.readouterr().out)
    assert short["benchmark"] == "quality"
    assert short["model"] is None  # a running server does not report its sizes
    dense, most = short["rows"]
    assert (most["setting"], most["agreement"]["mean"], most["accuracy"]) == ("max", 1, None)
    assert (most["kv_share"], most["kv_bytes"], dense["kl"]["mean"]) == (0.25, None, 0)
    assert "2/2: 8 frames, max: as dense 100.0 [100.0, 100.0] %" in captured.err
    assert str(tmp_path) not in (tmp_path / "out" / "result.json").read_text()
    answers = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in answers]
    assert [line["text"] for line in lines] == ["same"] * 4
    assert {(line["question"], line["answer"]) for line in lines} == {("Where?", None)}
    assert [body["metok"] for body in bodies] == [{"enabled": False}] * 2 + [{"preset": "max"}] * 2


@pytest.mark.parametrize("given", [["--base-url", "URL"], ["--checkpoint", "demo"]])
def test_frames_over_the_limit_are_refused_first(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "videos", 2, [{"question": "Where?"}])
    server = CannedServer(lambda _question, _metok: "too many frames")
    with canned_server(server) as endpoint:
        options = [word.replace("URL", endpoint.url) for word in given]
        where = ["--result-dir", str(tmp_path / "out"), "--frames", "500"]
        assert cli.main(["bench", "--quality", str(folder), *options, *where]) == 2
    error = capsys.readouterr().err
    if "--base-url" in given:
        assert "the server refuses the questions: 400: num_frames is over 128" in error
        assert len(server.bodies) == 1
    else:
        assert "--frames 500 is over 128, the most frames that the server samples" in error
    assert not (tmp_path / "out").exists()


def test_a_setting_without_answers_has_no_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "videos", 2, [{"question": "Where?"}])
    with canned_server(CannedServer(lambda _question, _metok: "refuse")) as endpoint:
        where = ["--base-url", endpoint.url, "--result-dir", str(tmp_path / "out")]
        options = ["--frames", "8", "--presets", "max"]
        assert cli.main(["bench", "--quality", str(folder), *where, *options]) == 1
    assert "2/2: 8 frames, max: no answers\n" in capsys.readouterr().err
