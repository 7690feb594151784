"""Figures by turn: of a run, over rounds, as ratios and as a table."""

from __future__ import annotations

import pytest

from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.throughput import tables
from metok_vllm.benchmarks.throughput.load import Load, LoadRun
from metok_vllm.benchmarks.throughput.measures import measure
from metok_vllm.benchmarks.throughput.records import cell_record
from metok_vllm.benchmarks.throughput.run import Cell, Run
from metok_vllm.benchmarks.throughput.turns import by_turn, over_rounds
from tests.benchmarks.throughput.experiments import outcome, shown


def run_of(*ttfts_s: float, cached: int | None = None) -> Run:
    """Two conversations with these times to the first token, turn by turn."""
    outcomes = tuple(
        outcome(f"{key}-{turn}", times_s=(ttft_s, 9.0), turn=turn, cached_tokens=cached)
        for key in "ab"
        for turn, ttft_s in enumerate(ttfts_s)
    )
    return Run(measure(LoadRun(outcomes, ()), Scrapes()), outcomes)


def test_every_turn_has_its_own_figures() -> None:
    """Catches turns that are mixed, and shared videos counted as new ones."""
    some = [outcome(times_s=(4.0 + n,), cached_tokens=8 * n) for n in (0, 2)]
    some += [outcome(times_s=(1.0, 3.0), turn=turn, cached_tokens=64) for turn in (1, 9)]
    some += [outcome(times_s=(2.0,), question=3), outcome(kind="text")]
    found = by_turn(some)
    assert list(found) == ["turn 1", "turn 1, shared video", "turn 2", "turn 10"]
    first, second = found["turn 1"], found["turn 2"]
    assert (first.answered, first.ttft_s.p50, first.cached_tokens) == (2, 5.0, 8.0)
    assert (second.ttft_s.p50, second.end_to_end_s.p50, second.cached_tokens) == (1.0, 3.0, 64)
    # One server that does not report is no server without hits.
    assert found["turn 1, shared video"].cached_tokens is None
    assert by_turn([outcome(cached_tokens=8), outcome()])["turn 1"].cached_tokens is None


def test_medians_and_ranges_are_over_rounds() -> None:
    """Catches a range over requests, and a turn that a failed round lacks."""
    rounds = [run_of(*ttfts).measures.by_turn for ttfts in ((4.0, 2.0), (5.0, 1.0), (9.0, 1.5))]
    found = over_rounds(rounds)
    assert found["turn 1"]["ttft_s_p50"] == {"median": 5.0, "low": 4.0, "high": 9.0}
    assert found["turn 2"]["ttft_s_p50"] == {"median": 1.5, "low": 1.0, "high": 2.0}
    assert "cached_tokens" not in found["turn 2"]
    assert list(over_rounds([*rounds, run_of(4.0).measures.by_turn])) == ["turn 1"]
    assert over_rounds([]) == {}


def test_ratios_by_turn_are_taken_round_by_round() -> None:
    """Catches a ratio of medians, and one server compared with the wrong rival."""
    names = ["plain", "plain-uncached", "metok"]
    times_s = [((8.0, 1.0), (8.0, 6.0), (2.0, 1.0)), ((9.0, 2.0), (9.0, 8.0), (1.0, 2.0))]
    cell = Cell(8, Load(2))
    for each in times_s:
        runs = {n: run_of(*t, cached=5) for n, t in zip(names, each, strict=True)}
        cell.rounds.append(runs)
    record = cell_record(cell, names)
    one, (other,) = record["comparison"], record["more_comparisons"]
    assert (one["plain"], one["other"]) == ("plain", "metok")
    assert (other["plain"], other["other"]) == ("plain-uncached", "metok")
    assert one["ratios"]["ttft_s_p50, turn 1"]["rounds"] == pytest.approx((4.0, 9.0))
    assert one["ratios"]["ttft_s_p50, turn 2"]["rounds"] == pytest.approx((1.0, 1.0))
    assert other["ratios"]["ttft_s_p50, turn 2"]["rounds"] == pytest.approx((6.0, 4.0))

    text = shown(*tables.tables({"cells": [record], "endpoints": names, "quality": []}))
    assert "turn 2: TTFT p50" in text
    assert "7.00 (6.00 to 8.00)" in text  # without a prefix cache, turn 2
    assert "metok: times as good as plain-uncached" in text
    assert "5.00 (4.00 to 6.00)" in text


def test_one_turn_has_no_table_of_its_own() -> None:
    """Catches a table that repeats the table of speeds."""
    cell = Cell(8, Load(2), [{"server": run_of(3.0)}])
    record = cell_record(cell, ["server"])
    text = shown(*tables.tables({"cells": [record], "endpoints": ["server"], "quality": []}))
    assert "By turn" not in text
    assert record["turns"]["server"]["turn 1"]["ttft_s_p50"]["median"] == 3.0
