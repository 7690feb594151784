"""Decode workers: started when first needed, kept, killed at a deadline, replaced when gone."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from metok_vllm.errors import MediaDeadline, MediaError
from metok_vllm.video.channel import ChannelClosedError, receive, send

# Imports of a worker on a machine under load; decoding has its own deadline after that.
START_TIMEOUT_S = 60.0
# A decoder that is taken over by a hostile file finds no keys or tokens in its environment.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "LANG", "LC_ALL")


class WorkerGoneError(Exception):
    """The worker ended before it took the request: no fault of the video."""


class Worker:
    """One `metok_vllm.video.worker` process and the socket to it."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metok_vllm.video.worker"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
            )

    def wait_until_ready(self) -> None:
        """Raises TimeoutError or ChannelClosedError when it does not come up."""
        receive(self.socket, time.monotonic() + START_TIMEOUT_S)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def call(
        self, request: dict[str, Any], video: BinaryIO, deadline_s: float
    ) -> tuple[dict[str, Any], BinaryIO | None]:
        """Reply and its file.

        Raises TimeoutError after `deadline_s`, WorkerGoneError, or ChannelClosedError when it dies
        over the request.
        """
        deadline = time.monotonic() + deadline_s
        self.socket.settimeout(deadline_s)
        try:
            send(self.socket, request, video)
            receive(self.socket, deadline)
        except ChannelClosedError:
            raise WorkerGoneError from None
        return receive(self.socket, deadline)

    def kill(self) -> None:
        """End the process now, and reap it."""
        self.process.kill()
        self.process.wait()
        self.socket.close()


class DecodePool:
    """At most as many workers as asked for, each with one video at a time. Thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._starting = 0

    def call(
        self, request: dict[str, Any], video: BinaryIO, max_workers: int, deadline_s: float
    ) -> tuple[dict[str, Any], BinaryIO | None]:
        """Have a worker answer `request` about the file `video`.

        The deadline runs from when a worker takes the request; waiting for a free one is not
        counted. Raises MediaDeadline when it passes, MediaError when the worker dies.
        """
        while True:
            worker, fresh = self._take(max_workers)
            try:
                return self._ask(worker, request, video, deadline_s)
            except WorkerGoneError:
                # One that died idle is seen to be gone only once it is reaped.
                if fresh:
                    raise MediaError("the video decoder cannot run", "decode_failed") from None

    def _ask(
        self, worker: Worker, request: dict[str, Any], video: BinaryIO, deadline_s: float
    ) -> tuple[dict[str, Any], BinaryIO | None]:
        started = time.monotonic()
        try:
            answer = worker.call(request, video, deadline_s)
        except BaseException as error:
            self._discard(worker)
            # A thread that is kept from running that long finds the worker ended by its alarm.
            late = time.monotonic() - started >= deadline_s
            if isinstance(error, TimeoutError) or (late and isinstance(error, ChannelClosedError)):
                raise MediaDeadline(
                    f"reading the video took longer than {deadline_s:g} s, the limit of this server"
                ) from None
            if isinstance(error, ChannelClosedError):
                raise MediaError("the decoder crashed on the video", "decode_failed") from None
            raise
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()
        return answer

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            workers = list(self._all)
            self._all.clear()
            self._idle.clear()
        for worker in workers:
            worker.kill()

    def forget(self) -> None:
        """In a forked child: let go of the parent's workers, which would outlive it otherwise."""
        workers = self._all
        self._reset()
        for worker in workers:
            worker.socket.close()
            worker.process.returncode = 0  # not this process's child: nothing to reap

    def _take(self, max_workers: int) -> tuple[Worker, bool]:
        """A worker, and whether it was started for this."""
        with self._changed:
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.alive():
                        return worker, False
                    self._all.discard(worker)
                    worker.kill()
                if len(self._all) + self._starting < max_workers:
                    self._starting += 1
                    break
                self._changed.wait()
        return self._start(), True

    def _start(self) -> Worker:
        worker: Worker | None = None
        try:
            worker = Worker()
            worker.wait_until_ready()
        except BaseException as error:
            if worker is not None:
                worker.kill()
            with self._changed:
                self._starting -= 1
                self._changed.notify()
            if isinstance(error, TimeoutError | ChannelClosedError | OSError):
                raise MediaError("the video decoder cannot be started", "decode_failed") from error
            raise
        with self._changed:
            self._starting -= 1
            self._all.add(worker)
        return worker

    def _discard(self, worker: Worker) -> None:
        worker.kill()
        with self._changed:
            self._all.discard(worker)
            self._changed.notify()


POOL = DecodePool()
atexit.register(POOL.close)
os.register_at_fork(after_in_child=POOL.forget)
