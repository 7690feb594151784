"""Increases of an engine's counters are counted once, whoever reads them."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metok_vllm.server.middleware.high_water import CounterHighWater


@pytest.fixture(params=["one process", "several"])
def _shared(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if request.param == "several":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.mark.usefixtures("_shared")
def test_only_values_above_the_high_water_mark_count() -> None:
    marks = CounterHighWater()
    assert marks.increase([]) == 0
    assert marks.increase([3]) == 3
    assert marks.increase([3, 4]) == 4
    assert marks.increase([5, 1]) == 2, "a late answer changes nothing"
    assert marks.increase([5]) == 0
    assert marks.increase([5, 6, 0]) == 2


def test_two_servers_do_not_count_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = CounterHighWater(), CounterHighWater()
    assert [first.increase([10, 2]), second.increase([10, 2]), second.increase([11, 2])] == [
        12,
        0,
        1,
    ]
    assert first.increase([12, 5]) == 4


def test_concurrent_increases_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    counted: list[int] = []

    def scrape() -> None:
        marks = CounterHighWater()
        counted.extend(marks.increase([value]) for value in range(200))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 199


def test_high_water_marks_outlive_their_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    where = "metok_vllm.server.middleware.high_water"
    code = f"from {where} import CounterHighWater; print(CounterHighWater().increase([7]))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(other.stdout) == 7
    assert CounterHighWater().increase([9]) == 2
