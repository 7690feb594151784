"""The server's side of one decode worker process: start, call, kill."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any, BinaryIO

from metok_vllm.video.channel import ChannelClosedError, receive, send

MODULE = "metok_vllm.video.worker"
# Covers the worker's imports on a busy machine; decoding has its own deadline.
START_TIMEOUT_S = 60.0
ACK_BYTES = 64
# Nothing else is passed, so that a compromised decoder finds no keys or tokens.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "TMPDIR", "LANG", "LC_ALL")


class WorkerExitedError(Exception):
    """The worker exited before it acknowledged the request: the video is not the cause."""


class Worker:
    """One `metok_vllm.video.worker` process and the socket to it."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
            )

    def wait_until_ready(self) -> None:
        """Raises TimeoutError or ChannelClosedError when it does not start."""
        receive(self.socket, time.monotonic() + START_TIMEOUT_S, ACK_BYTES)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def call(
        self, request: dict[str, Any], file: BinaryIO, deadline_s: float, max_bytes: int
    ) -> tuple[dict[str, Any], BinaryIO | None]:
        """Reply, of at most `max_bytes`, and its file.

        Raises TimeoutError after `deadline_s`, WorkerExitedError when the worker had exited before,
        or ChannelClosedError when it dies over the request.
        """
        deadline = time.monotonic() + deadline_s
        self.socket.settimeout(deadline_s)
        try:
            send(self.socket, request, file)
            receive(self.socket, deadline, ACK_BYTES)
        except ChannelClosedError:
            raise WorkerExitedError from None
        return receive(self.socket, deadline, max_bytes)

    def kill(self) -> None:
        """End the process now, and reap it."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
