"""Elapsed time of work on a device, read later so that nobody waits for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Started when made. On CUDA it times the work queued in between, not the queueing."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks = [self._mark()]

    def stop(self) -> None:
        """Mark the end."""
        self._marks.append(self._mark())

    def seconds(self) -> float | None:
        """Seconds between start and stop; None while the device is still at it."""
        first, last = self._marks[0], self._marks[-1]
        if isinstance(first, float) or isinstance(last, float):
            assert isinstance(first, float)
            assert isinstance(last, float)
            return last - first
        return first.elapsed_time(last) / 1e3 if last.query() else None

    def wait(self) -> None:
        """Until the device has passed the end; not for what was queued afterwards."""
        last = self._marks[-1]
        if not isinstance(last, float):
            last.synchronize()

    def _mark(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
