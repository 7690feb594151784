"""Decoders that are busy until the test ends, however fast the machine is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from metok_vllm.video.pool import POOL
from metok_vllm.video.worker_process import Worker


@contextmanager
def stopped_decoders(number: int) -> Iterator[list[Worker]]:
    """The pool's only decoders, stopped: they take a video and answer after the block."""
    POOL.end_workers()
    workers = [POOL._start() for _ in range(number)]
    for worker in workers:
        worker.process.send_signal(signal.SIGSTOP)
        POOL._put_back(worker)
    try:
        yield workers
    finally:
        resume(workers)


def resume(workers: list[Worker]) -> None:
    """Continue the workers that still exist."""
    for worker in workers:
        worker.process.send_signal(signal.SIGCONT)
