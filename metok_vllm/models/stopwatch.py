"""Elapsed time of work on a device, read later and without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event


class Stopwatch:
    """Started when made. On CUDA it times the work queued in between, not the queueing."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self._mark()
        self._end = self._start
        self._laps: list[tuple[Mark, Mark]] = []

    def stop(self) -> None:
        """Mark the end."""
        self._end = self._mark()

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time a part separately; laps must not overlap."""
        start = self._mark()
        yield
        self._laps.append((start, self._mark()))

    def seconds(self) -> float | None:
        """Seconds between start and stop; None until the device has reached the end."""
        return _between(self._start, self._end) if self._passed() else None

    def lap_seconds(self) -> float | None:
        """Seconds of all laps together; None until the device has reached the end."""
        return sum(_between(*lap) for lap in self._laps) if self._passed() else None

    def wait(self) -> None:
        """Wait until the device has reached the end, not for work queued afterwards."""
        if not isinstance(self._end, float):
            self._end.synchronize()

    def _passed(self) -> bool:
        return isinstance(self._end, float) or bool(self._end.query())

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(first: Mark, last: Mark) -> float:
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float)
        assert isinstance(last, float)
        return last - first
    return float(first.elapsed_time(last)) / 1e3
