"""The server's phase (loading, serving, draining) and its requests in flight.

A shutdown drains first: new requests are refused and running ones may finish.
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
    """Phases of a server, in order."""

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
        # Runs once after a regular shutdown of the engine, in a worker thread; may block.
        self.after_serving: Callable[[], None] | None = None
        # Whether the server ended because its engine died, without a signal.
        self.failed = False

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def inflight(self) -> int:
        """Requests in flight of all clients."""
        return self._inflight.total()

    def inflight_of(self, client: str) -> int:
        """Requests in flight of one client."""
        return self._inflight[client]

    def serve(self) -> None:
        """End loading: runs `before_serving`, which may block, and starts to serve."""
        if self.before_serving is not None:
            self.before_serving()
        with self._changed:
            if self._phase is Phase.LOADING:
                self._phase = Phase.SERVING

    def enter(self, client: str = "") -> None:
        """Count a request as in flight."""
        with self._changed:
            self._inflight[client] += 1

    def leave(self, client: str = "") -> None:
        """Count a request as complete."""
        with self._changed:
            self._inflight[client] -= 1
            self._inflight += Counter()  # drops clients at 0
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> float:
        """Refuse new requests and wait for those in flight. Blocks.

        Returns the seconds left of `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._phase = Phase.DRAINING
            while self.inflight and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
        return max(0.0, deadline - time.monotonic())


# vLLM constructs the endpoint plugin, so the launcher shares this object with it here.
LIFECYCLE = Lifecycle()


def drain_before(
    shutdown: Callable[..., None],
    lifecycle: Lifecycle,
    drain_s: float,
    stop_work: Callable[[], None],
) -> Callable[..., None]:
    """An engine `shutdown` that first drains for up to `drain_s` seconds, then runs `stop_work`.

    vLLM's own drain starts after its renderer is closed, so requests whose videos are still being
    decoded would fail. On SIGTERM vLLM calls `shutdown` in a worker thread, so waiting here does
    not block the event loop.
    """

    def drained_shutdown(timeout: float | None = None) -> None:
        first = lifecycle.phase is not Phase.DRAINING
        if first:
            # vLLM calls it in the event loop only when it cleans up after a dead engine.
            lifecycle.failed = _in_event_loop()
            left = lifecycle.drain(0.0 if lifecycle.failed else drain_s)
            if timeout:
                timeout = max(left, ENGINE_EXIT_S)
            stop_work()
        shutdown(timeout=timeout)
        if first and not lifecycle.failed and lifecycle.after_serving is not None:
            lifecycle.after_serving()

    return drained_shutdown


async def watch_engine(engine_client: Any, stop_work: Callable[[], None]) -> None:
    """Run `stop_work`, which ends all decoding, once the engine is dead.

    vLLM's server stops then, but waits for requests that would wait for their videos.
    """
    while not engine_client.errored:
        await asyncio.sleep(WATCH_S)
    stop_work()


def stop_decoding() -> None:
    """End all decoders and fail the requests that wait for one."""
    # Imported here because the loading phase uses this module and must start fast.
    from metok_vllm.video.pool import POOL

    POOL.close()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
