"""Times of stages 1 and 2: reported once, and read without waiting for the device."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from metok_vllm import metrics
from metok_vllm.alignment import Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.models.stopwatch import Stopwatch
from tests.layouts import square

CPU = torch.device("cpu")
TIMES = ("seconds", "own_seconds", "prefill_seconds", "pruning_seconds")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as its only item, moved by the test."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_laps_are_parts_of_the_whole(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    for part, rest in ((2.0, 1.0), (3.0, 0.5)):
        with watch.lap():
            clock[0] += part
        clock[0] += rest
    watch.stop()
    clock[0] += 9.0
    assert (watch.seconds(), watch.lap_seconds()) == (6.5, 5.0)


class Event:
    """A CUDA event on a device that has passed the first `passed` marks."""

    made, passed = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.number = -1

    def record(self) -> None:
        Event.made += 1
        self.number = Event.made

    def query(self) -> bool:
        return self.number <= Event.passed

    def elapsed_time(self, later: Event) -> float:
        assert later.query(), "CUDA raises for an event that was not passed"
        return 1e3 * (later.number - self.number)


def test_reading_a_time_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(Event, "passed", 3)
    watch = Stopwatch(torch.device("cuda"))
    with watch.lap():
        pass
    watch.stop()
    assert watch.seconds() is None
    assert watch.lap_seconds() is None
    monkeypatch.setattr(Event, "passed", 4)
    assert (watch.seconds(), watch.lap_seconds()) == (3.0, 1.0)


def test_towers_and_projector_are_not_stage_1_s_own(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes(seconds: float, result: torch.Tensor) -> torch.Tensor:
        clock[0] += seconds
        return result

    stage1 = Stage1Encoder(
        METokConfig(encoder_chunk_frames=2),
        lambda pixels, _: takes(4.0, pixels.flatten(2).mT),
        lambda seen: takes(1.0, seen),
        Normalisation((0.5,) * 3, (0.5,) * 3, 5),
        None,
    )
    look = stage1.video.compute

    def slower(*args: Any) -> Any:
        clock[0] += 0.25
        return look(*args)

    monkeypatch.setattr(stage1.video, "compute", slower)
    newline_D = torch.zeros(3)
    for key in "ab":
        request = EncodeRequest(key, METokConfig(), ())
        stage1.encode(torch.randn(3, 3, 5, 5), newline_D, request, square(3, 5))
    watch = Stopwatch(CPU)
    with watch.lap():
        clock[0] += 0.5
    clock[0] += 1.5
    watch.stop()
    stage1.events.record_prefill(["a", "b", "of another rule", "forgotten"], watch)
    for key in "ab":
        first, again = stage1.events.report(key), stage1.events.report(key)
        assert first is not None
        assert again is not None
        assert [first[name] for name in TIMES] == [10.25, 0.25, 0.5, 0.125]
        assert [again[name] for name in TIMES] == [None] * 4


def test_another_prefill_of_an_encoded_video_is_told_alone(clock: list[float]) -> None:
    stage1 = Stage1Encoder(
        METokConfig(),
        lambda pixels, _: pixels.flatten(2).mT,
        lambda seen: seen,
        Normalisation((0.5,) * 3, (0.5,) * 3, 5),
        None,
    )
    request = EncodeRequest("a", METokConfig(), ())
    stage1.encode(torch.randn(3, 3, 5, 5), torch.zeros(3), request, square(3, 5))
    stage1.events.report("a")
    watch = Stopwatch(CPU)
    clock[0] += 2.0
    watch.stop()
    stage1.events.record_prefill(["a"], watch)
    report = stage1.events.report("a")
    assert report is not None
    assert [report[name] for name in TIMES] == [None, None, 2.0, 0]


def test_what_is_told_is_observed() -> None:
    def sums() -> list[float]:
        return [
            REGISTRY.get_sample_value("metok_stage_seconds_sum", {"stage": stage}) or 0.0
            for stage in ("1", "1_own", "2", "prefill")
        ]

    def counts() -> list[float]:
        names = ("hits", "misses")
        return [
            REGISTRY.get_sample_value(f"metok_feature_cache_{name}_total") or 0.0 for name in names
        ]

    before, counted = sums(), counts()
    report = {"seconds": 8.0, "own_seconds": 0.5, "prefill_seconds": 4.0, "pruning_seconds": 0.25}
    metrics.observe_video({**report, "cached": True, "event_of_frame": [0]}, (1, 2, 3))
    metrics.observe_video({**dict.fromkeys(report), "cached": False}, (1, 2, 3))
    metrics.observe_video({**report, "cached": None}, (2, 3))
    metrics.observe_video({"event_of_frame": [0]}, (1,))
    rises = [after - old for after, old in zip(sums(), before, strict=True)]
    assert rises == pytest.approx([8.0, 0.5, 2 * 0.25, 2 * 4.0])
    assert [after - old for after, old in zip(counts(), counted, strict=True)] == [1, 1]
