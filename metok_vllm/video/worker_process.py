"""One decode worker process, as the server sees it: started, asked, killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import Any, BinaryIO

from metok_vllm.video.channel import ChannelClosedError, receive, send

MODULE = "metok_vllm.video.worker"
# Imports of a worker on a machine under load; decoding has its own deadline after that.
START_TIMEOUT_S = 60.0
ACK_BYTES = 64
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
                [sys.executable, "-m", MODULE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
            )

    def wait_until_ready(self) -> None:
        """Raises TimeoutError or ChannelClosedError when it does not come up."""
        receive(self.socket, time.monotonic() + START_TIMEOUT_S, ACK_BYTES)

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def call(
        self, request: dict[str, Any], file: BinaryIO, deadline_s: float, max_bytes: int
    ) -> tuple[dict[str, Any], BinaryIO | None]:
        """Reply, of at most `max_bytes`, and its file.

        Raises TimeoutError after `deadline_s`, WorkerGoneError, or ChannelClosedError when it dies
        over the request.
        """
        deadline = time.monotonic() + deadline_s
        self.socket.settimeout(deadline_s)
        try:
            send(self.socket, request, file)
            receive(self.socket, deadline, ACK_BYTES)
        except ChannelClosedError:
            raise WorkerGoneError from None
        return receive(self.socket, deadline, max_bytes)

    def kill(self) -> None:
        """End the process now, and reap it."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
