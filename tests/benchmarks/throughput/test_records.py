"""The record of an experiment, and its tables."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.throughput import charts, records, tables
from metok_vllm.benchmarks.throughput.compare import (
    read_result,
)
from metok_vllm.benchmarks.throughput.load import LoadRun
from metok_vllm.benchmarks.throughput.measures import measure
from metok_vllm.benchmarks.throughput.run import Cell
from metok_vllm.benchmarks.throughput.split import PARTS
from tests.benchmarks.throughput.experiments import outcome, quality_at, shown


def test_the_json_describes_itself(result: dict[str, Any], tmp_path: Path) -> None:
    records.write_json(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert result["environment"] == {"commit": "abc"}
    assert [endpoint["name"] for endpoint in result["endpoints"]] == ["plain", "metok"]
    assert len(result["cells"]) == 4
    cell = result["cells"][0]
    assert (cell["frames"], cell["max_concurrency"], cell["request_rate"]) == (8, 1, None)
    assert len(cell["rounds"]) == 2
    assert len(cell["requests"]["metok"]) == 6
    assert cell["comparison"]["agreement"]["compared"] == 6
    assert "word0" not in json.dumps(result)  # answers are hashes


def test_medians_are_those_of_the_rounds(result: dict[str, Any]) -> None:
    for cell in result["cells"]:
        for name in ("plain", "metok"):
            rates = [runs[name]["requests_per_s"] for runs in cell["rounds"]]
            assert cell["medians"][name]["requests_per_s"] == pytest.approx(sum(rates) / 2)
            assert cell["medians"][name]["split_decode_s"] == pytest.approx(0.03)
            # Only the way to the client is unexplained.
            assert 0.3 < cell["medians"][name]["split_explained"] <= 1


def test_the_csv_has_a_row_for_every_run(
    measured: tuple[list[Cell], list[Endpoint]], result: dict[str, Any], tmp_path: Path
) -> None:
    records.write_csv(tmp_path / "rounds.csv", measured[0])
    with (tmp_path / "rounds.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 * 2 * 2
    assert [line["server"] for line in lines[:3]] == ["plain", "metok", "plain"]
    wanted = result["cells"][0]["rounds"][0]["plain"]
    assert float(lines[0]["requests_per_s"]) == wanted["requests_per_s"]
    assert float(lines[0]["ttft_s_p99"]) == wanted["ttft_s"]["p99"]
    assert (lines[0]["request_rate"], lines[0]["host_cores"]) == ("", "")
    assert float(lines[0]["preemptions"]) == 0
    assert {f"split_{part}_s" for part in PARTS} <= lines[0].keys()


def test_no_ratio_is_shown_without_its_agreement(result: dict[str, Any]) -> None:
    text = shown(*tables.tables(result))
    ratio = result["cells"][0]["comparison"]["ratios"]["ttft_s_p50"]["median"]
    assert f"{ratio:.2f} (" in text
    assert "answers equal" in text
    assert "100%" in text
    refused = copy.deepcopy(result)
    for cell in refused["cells"]:
        cell["comparison"] |= {"refused": "requests failed: 1 of metok", "ratios": {}}
    text = shown(*tables.tables(refused))
    assert "requests failed: 1 of metok" in text
    assert f"{ratio:.2f} (" not in text


def test_results_of_the_same_servers_are_combined(result: dict[str, Any]) -> None:
    parts = [{**result, "cells": [cell]} for cell in result["cells"]]
    assert charts.combine(parts) == result
    parts[1]["endpoints"] = [{"name": "another"}, result["endpoints"][1]]
    with pytest.raises(ValueError, match="different servers"):
        charts.combine(parts)


def row_of(text: str, label: str) -> list[str]:
    """The first row of that name whose cells are not names."""
    rows_of = [line.strip("│").split("│") for line in text.splitlines() if "│" in line]
    (found, *_) = [[c.strip() for c in cells[1:]] for cells in rows_of if cells[0].strip() == label]
    return found


def test_right_answers_stand_beside_the_ratios(
    measured: tuple[list[Cell], list[Endpoint]],
) -> None:
    cells, endpoints = measured
    found = [quality_at(8), quality_at(16, failed=1)]
    whole = records.result(cells, endpoints, {}, {}, None, found, "pending")
    text = shown(*tables.tables(whole))
    assert tables.failures(whole) == ["metok: 1 failed: event-QA questions at 16 frames"]
    ratio = whole["cells"][0]["comparison"]["ratios"]["ttft_s_p50"]["median"]
    assert f"{ratio:.2f} (" in text
    plain, metok = "93.8 (84.4 to 100.0)", "87.5 (75.0 to 96.9)"
    # A column a cell in the comparison, a column a server in the table of speeds.
    for label, values in (
        ("right, plain, %", [plain, plain]),
        ("right, metok, %", [metok, metok]),
        ("difference, points", ["-6.2 (-12.5 to +0.0)"] * 2),
        ("guessing, %", ["15.0"] * 2),
        ("event-QA, questions", ["32"] * 2),
        ("right, %", [plain, metok] * 2),
    ):
        assert row_of(text, label) == values
    assert json.loads(records.one_line(whole))["quality"] == json.loads(
        json.dumps(whole["quality"])
    )
    for cell in whole["cells"]:
        refused = "questions failed: 1 of metok" if cell["frames"] == 16 else None
        assert cell["comparison"]["refused"] == refused
        assert bool(cell["comparison"]["ratios"]) == (refused is None)


def test_no_ratio_before_the_questions(
    measured: tuple[list[Cell], list[Endpoint]],
) -> None:
    cells, endpoints = measured
    whole = records.result(cells, endpoints, {}, {}, None, [quality_at(8)], "not sent")
    refused = {cell["frames"]: cell["comparison"]["refused"] for cell in whole["cells"]}
    assert refused == {8: None, 16: "not sent"}
    assert whole["cells"][-1]["comparison"]["ratios"] == {}
    assert whole["cells"][-1]["medians"]["plain"]["requests_per_s"] > 0


def test_how_much_sooner_a_next_question_is_answered() -> None:
    outcomes = [
        outcome(f"{video}-{question}", times_s=(ttft_s, 9.0), question=question)
        for video, ttfts_s in enumerate([(2.0, 0.5), (4.0, 1.0), (6.0, 3.0)])
        for question, ttft_s in enumerate(ttfts_s)
    ]
    both = measure(LoadRun(tuple(outcomes), ()), Scrapes())
    assert records.columns(both)["ttft_first_question_s_p50"] == 4
    assert records.columns(both)["ttft_next_question_s_p50"] == 1
    assert records.columns(both)["ttft_next_question_times_sooner"] == 4
    alone = measure(LoadRun(tuple(outcomes[:1]), ()), Scrapes())
    assert records.columns(alone)["ttft_next_question_times_sooner"] is None
