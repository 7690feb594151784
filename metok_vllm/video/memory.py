"""How much memory decoded videos may take in this process, all of them together."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from metok_vllm.errors import MediaDeadline
from metok_vllm.video.frame_cache import FRAMES

# A full collection of a large process takes most of a second; a queue must not wait for one each.
COLLECT_EVERY_S = 10.0


class Reservation:
    """Bytes that one video may take while it is read."""

    def __init__(self, num_bytes: int, returned: SimpleQueue[int]) -> None:
        self.num_bytes = num_bytes
        self._returned = returned

    def hand_over(self, owner: object, num_bytes: int) -> None:
        """Let `num_bytes` of it last until `owner`, which holds the memory, is collected."""
        assert num_bytes <= self.num_bytes, f"{num_bytes} of {self.num_bytes} bytes"
        weakref.finalize(owner, self._returned.put, num_bytes)
        self.num_bytes -= num_bytes


class MemoryBudget:
    """Bytes promised to videos, from before they are decoded until their frames are gone.

    Thread-safe; who has to wait is served in order of arrival. `relieve` is asked first: it lets go
    of something that may give bytes back, or returns False.
    """

    def __init__(self, relieve: Callable[[], bool] = lambda: False) -> None:
        self._relieve = relieve
        self._reset()

    def _reset(self) -> None:
        # Held by the one caller whose turn it is.
        self._turn = threading.Lock()
        self._used = 0
        self._collected_s = -COLLECT_EVERY_S
        # Bytes come back from finalizers, which may run in the middle of anything, even in the
        # thread whose turn it is: its `put` takes no lock that such code can hold.
        self._returned: SimpleQueue[int] = SimpleQueue()

    @contextmanager
    def reserve(self, num_bytes: int, limit: int, wait_s: float) -> Iterator[Reservation]:
        """Hold `num_bytes` of `limit`; what is not handed over comes back at the end.

        Raises MediaDeadline when others hold too much for longer than `wait_s` seconds.
        """
        assert num_bytes <= limit, f"{num_bytes} of {limit} bytes can never be had"
        returned = self._returned
        self._take(num_bytes, limit, time.monotonic() + wait_s)
        reservation = Reservation(num_bytes, returned)
        try:
            yield reservation
        finally:
            returned.put(reservation.num_bytes)

    def _take(self, num_bytes: int, limit: int, deadline: float) -> None:
        try:
            if not self._turn.acquire(timeout=_left(deadline)):
                raise Empty
            try:
                while self._used + num_bytes > limit:
                    self._used -= self._wait_for_return(deadline)
                self._used += num_bytes
            finally:
                self._turn.release()
        except Empty:
            raise MediaDeadline(
                f"the server is decoding as much video as it may hold ({limit} bytes); try again",
                "busy",
            ) from None

    def _wait_for_return(self, deadline: float) -> int:
        if self._returned.empty() and self._relieve():
            return 0
        try:
            return self._returned.get(timeout=_left(deadline))
        except Empty:
            # Frames in reference cycles stay until a full collection, rare in a large process.
            if time.monotonic() - self._collected_s >= COLLECT_EVERY_S:
                gc.collect()
                self._collected_s = time.monotonic()
            return self._returned.get_nowait()


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


MEMORY = MemoryBudget(FRAMES.drop_oldest)
# In a forked child the lock may be held by a thread that is not there.
os.register_at_fork(after_in_child=MEMORY._reset)
