"""Where the server is in its life, and how many requests it is working on.

loading -> serving -> draining. The HTTP layer asks here whether to take a request; a shutdown
first lets the requests that are under way finish.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Any

ENGINE_EXIT_S = 2.0
WATCH_S = 0.5


class Phase(Enum):
    """Phase of the server's life."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """Thread-safe phase and count of requests in flight."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING
        self._inflight: Counter[str] = Counter()
        self._changed = threading.Condition()
        self.before_serving: Callable[[], None] | None = None
        # Run once the engine is told to end in good order, in a worker thread; may block.
        self.after_serving: Callable[[], None] | None = None
        # The server ended although no signal asked it to: its engine died.
        self.failed = False

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def inflight(self) -> int:
        return self._inflight.total()

    def held_by(self, client: str) -> int:
        """Requests in flight of one client."""
        return self._inflight[client]

    def serve(self) -> None:
        """Loading is over; runs `before_serving`, which may block."""
        if self.before_serving is not None:
            self.before_serving()
        with self._changed:
            if self._phase is Phase.LOADING:
                self._phase = Phase.SERVING

    def enter(self, client: str = "") -> None:
        """A generation request was taken."""
        with self._changed:
            self._inflight[client] += 1

    def leave(self, client: str = "") -> None:
        """A generation request is over."""
        with self._changed:
            self._inflight[client] -= 1
            self._inflight += Counter()  # forgets clients that have none
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> float:
        """Refuse new requests and wait for those in flight; seconds left. Blocks its thread."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._phase = Phase.DRAINING
            while self.inflight and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return max(0.0, deadline - time.monotonic())


# vLLM makes the endpoint plugin, so the launcher and the plugin meet here.
LIFECYCLE = Lifecycle()


def drain_before(
    shutdown: Callable[..., None],
    lifecycle: Lifecycle,
    drain_s: float,
    stop_work: Callable[[], None],
) -> Callable[..., None]:
    """An engine `shutdown` that first drains for up to `drain_s` seconds, then runs `stop_work`.

    vLLM's own drain starts inside the engine, after the renderer is gone: a request whose video
    is still being decoded would fail. vLLM calls `shutdown` in a worker thread on SIGTERM, so
    waiting here leaves the event loop free to finish the answers.
    """

    def drained_shutdown(timeout: float | None = None) -> None:
        first = lifecycle.phase is not Phase.DRAINING
        if first:
            # Signals are served in a worker thread; in the event loop vLLM only cleans up.
            lifecycle.failed = _in_event_loop()
            left = lifecycle.drain(0.0 if lifecycle.failed else drain_s)
            if timeout:
                timeout = max(left, ENGINE_EXIT_S)
            # Nobody is waited for any more, so nothing need be decoded for them.
            stop_work()
        shutdown(timeout=timeout)
        if first and not lifecycle.failed and lifecycle.after_serving is not None:
            lifecycle.after_serving()

    return drained_shutdown


async def watch_engine(engine_client: Any, stop_work: Callable[[], None]) -> None:
    """Runs `stop_work`, which ends what is being decoded, once the engine is dead.

    vLLM's server then stops, but waits for its requests, and those would wait for their videos.
    """
    while not engine_client.errored:
        await asyncio.sleep(WATCH_S)
    stop_work()


def stop_decoding() -> None:
    """End the decoders, and whoever waits for one."""
    # Loaded by now if there is anything to end; at the top it would make this file heavy.
    from metok_vllm.video.pool import POOL

    POOL.close()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
