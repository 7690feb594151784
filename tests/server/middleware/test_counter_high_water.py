"""What several API servers count together is counted once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from metok_vllm.server.middleware.counter_high_water import HighMarks


@pytest.fixture(params=["one process", "several"])
def _shared(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if request.param == "several":
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    else:
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


@pytest.mark.usefixtures("_shared")
def test_only_what_is_above_the_marks_counts() -> None:
    marks = HighMarks()
    assert marks.rise([]) == 0
    assert marks.rise([3]) == 3
    assert marks.rise([3, 4]) == 4
    assert marks.rise([5, 1]) == 2, "a late answer takes nothing back"
    assert marks.rise([5]) == 0
    assert marks.rise([5, 6, 0]) == 2


def test_two_servers_do_not_count_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    first, second = HighMarks(), HighMarks()
    assert [first.rise([10, 2]), second.rise([10, 2]), second.rise([11, 2])] == [12, 0, 1]
    assert first.rise([12, 5]) == 4


def test_at_the_same_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    counted: list[int] = []

    def scrape() -> None:
        marks = HighMarks()
        counted.extend(marks.rise([value]) for value in range(200))

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted) == 199


def test_marks_outlive_the_process_that_made_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    where = "metok_vllm.server.middleware.counter_high_water"
    code = f"from {where} import HighMarks; print(HighMarks().rise([7]))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(other.stdout) == 7
    assert HighMarks().rise([9]) == 2
