"""What is seen while an experiment runs: a bar on a terminal, lines elsewhere, always on stderr."""

from __future__ import annotations

import pytest

from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.throughput.load import LoadRun
from metok_vllm.benchmarks.throughput.measures import measure
from metok_vllm.benchmarks.throughput.progress import LiveProgress
from tests.benchmarks.throughput.outcomes import outcome

OUTCOMES = (outcome("a", times_s=(2.0,)), outcome("b", times_s=(), error="429"))


def watch() -> None:
    with LiveProgress() as progress:
        progress.begin("a warm-up", 1)
        progress.outcome(OUTCOMES[0])
        progress.end(None)
        progress.begin("round 1", 2)
        for one in OUTCOMES:
            progress.outcome(one)
        progress.end(measure(LoadRun(OUTCOMES, ()), Scrapes()))


def test_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    watch()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "metok: a warm-up: done",
        "metok: round 1: 0.500 requests/s first token 2.00 s, 1 failed",
    ]


def test_a_bar_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    watch()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\x1b[" in captured.err
    assert "round 1" in captured.err
    assert "metok: " not in captured.err
