"""Accuracy and next questions in an experiment's record, and in the comparison of two."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.questions.bootstrap import Estimate
from metok_vllm.benchmarks.throughput import records, tables
from metok_vllm.benchmarks.throughput.accuracy import Quality
from metok_vllm.benchmarks.throughput.compare import comparison_table, rows
from metok_vllm.benchmarks.throughput.load import LoadRun
from metok_vllm.benchmarks.throughput.measures import measure
from metok_vllm.benchmarks.throughput.run import Cell
from tests.benchmarks.throughput.experiments import outcome, shown


def right_at(frames: int, failed: int = 0) -> Quality:
    """The accuracy of two servers on 32 questions."""
    return Quality(
        source="event-QA",
        frames=frames,
        digest="questions",
        videos=4,
        questions=32,
        chance=0.15,
        failed={"plain": 0, "metok": failed},
        accuracy={
            "plain": Estimate(0.9375, 0.84375, 1.0),
            "metok": Estimate(0.875, 0.75, 0.96875),
        },
        difference=Estimate(-0.0625, -0.125, 0.0),
        agreement=None,
    )


def row_of(text: str, label: str) -> list[str]:
    """The first row of that name whose cells are not names."""
    rows_of = [line.strip("│").split("│") for line in text.splitlines() if "│" in line]
    (found, *_) = [[c.strip() for c in cells[1:]] for cells in rows_of if cells[0].strip() == label]
    return found


def test_right_answers_stand_beside_the_ratios(
    measured: tuple[list[Cell], list[Endpoint]],
) -> None:
    cells, endpoints = measured
    found = [right_at(8), right_at(16, failed=1)]
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
    whole = records.result(cells, endpoints, {}, {}, None, [right_at(8)], "not sent")
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


def test_the_accuracy_of_two_results(
    measured: tuple[list[Cell], list[Endpoint]],
) -> None:
    cells, endpoints = measured

    def of(*quality: Quality) -> dict[str, Any]:
        whole = records.result(cells, endpoints, {}, {}, None, quality)
        found: dict[str, Any] = json.loads(json.dumps(whole))
        return found

    without, with_both = of(), of(right_at(8), right_at(16))
    right = {row.server: row.right for row in rows(with_both, with_both) if row.place[0] == "8"}
    assert right["plain"] == "93.8 (84.4 to 100.0)\n93.8 (84.4 to 100.0)"
    assert right["metok"] == "87.5 (75.0 to 96.9)\n87.5 (75.0 to 96.9)"
    assert "87.5 (75.0 to 96.9)" in shown(comparison_table(rows(with_both, with_both)))
    last = [row.right.splitlines()[-1] for row in rows(with_both, of(right_at(8)))]
    assert last[:2] == ["93.8 (84.4 to 100.0)", "87.5 (75.0 to 96.9)"]
    assert set(last[4:]) == {"not in the second file"}
    assert {row.right for row in rows(without, without)} == {"in neither file"}
    text = shown(comparison_table(rows(without, with_both)))
    assert "not in the first file" in text
    assert "(1.00)" in text
    other = dataclasses.replace(right_at(8), digest="other")
    assert rows(with_both, of(other))[0].right.endswith("\nof other questions")
