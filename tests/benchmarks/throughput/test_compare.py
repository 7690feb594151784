"""Two results compared: ratios, agreement, accuracy."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.throughput import records
from metok_vllm.benchmarks.throughput.accuracy import Quality
from metok_vllm.benchmarks.throughput.compare import (
    comparison_table,
    differences,
    rows,
)
from metok_vllm.benchmarks.throughput.run import Cell
from tests.benchmarks.throughput.experiments import quality_at, shown


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


def test_the_accuracy_of_two_results(
    measured: tuple[list[Cell], list[Endpoint]],
) -> None:
    cells, endpoints = measured

    def of(*quality: Quality) -> dict[str, Any]:
        whole = records.result(cells, endpoints, {}, {}, None, quality)
        found: dict[str, Any] = json.loads(json.dumps(whole))
        return found

    without, with_both = of(), of(quality_at(8), quality_at(16))
    right = {row.server: row.right for row in rows(with_both, with_both) if row.place[0] == "8"}
    assert right["plain"] == "93.8 (84.4 to 100.0)\n93.8 (84.4 to 100.0)"
    assert right["metok"] == "87.5 (75.0 to 96.9)\n87.5 (75.0 to 96.9)"
    assert "87.5 (75.0 to 96.9)" in shown(comparison_table(rows(with_both, with_both)))
    last = [row.right.splitlines()[-1] for row in rows(with_both, of(quality_at(8)))]
    assert last[:2] == ["93.8 (84.4 to 100.0)", "87.5 (75.0 to 96.9)"]
    assert set(last[4:]) == {"not in the second file"}
    assert {row.right for row in rows(without, without)} == {"in neither file"}
    text = shown(comparison_table(rows(without, with_both)))
    assert "not in the first file" in text
    assert "(1.00)" in text
    other = dataclasses.replace(quality_at(8), digest="other")
    assert rows(with_both, of(other))[0].right.endswith("\nof other questions")
