"""What an experiment leaves behind: JSON, CSV, tables, charts, and two of them compared."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.throughput import charts, records, tables
from metok_vllm.benchmarks.throughput.compare import (
    comparison_table,
    differences,
    read_result,
    rows,
)
from metok_vllm.benchmarks.throughput.run import Cell
from metok_vllm.benchmarks.throughput.split import PARTS
from tests.benchmarks.throughput.experiments import shown


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
            # The server names all of its time; what it cannot see is the way to the client.
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


def test_two_results(result: dict[str, Any]) -> None:
    faster = copy.deepcopy(result)
    faster["environment"]["commit"] = "def"
    medians = faster["cells"][0]["medians"]["metok"]
    medians["requests_per_s"] *= 2
    medians["ttft_s_p50"] /= 4
    found = rows(result, faster)
    assert len(found) == 4 * 2
    row = found[1]
    assert (row.place, row.server, row.agreement) == ("8 frames, 1 in flight", "metok", 1.0)
    assert list(row.ratios) == pytest.approx([2, 4, 1, 1])
    assert differences(result, faster) == ["environment commit: abc and def"]
    assert "(2.00)" in shown(comparison_table(found))


@pytest.mark.parametrize(
    ("change", "why"),
    [({"error": "429"}, "no ratio: requests failed"), ({"key": "x"}, "no ratio: no request")],
)
def test_two_results_without_quality_have_no_ratio(
    result: dict[str, Any], change: dict[str, str], why: str
) -> None:
    other = copy.deepcopy(result)
    for record in other["cells"][0]["requests"]["plain"]:
        record |= change
    row = rows(result, other)[0]
    assert row.ratios == (None,) * 4
    assert str(row.refused).startswith(why)
    assert rows(result, other)[2].refused is None
