"""The queue for decoders: fair between clients; light videos do not wait behind heavy ones.

A video gets a decoder and the memory for its frames together, so that none holds one while it waits
for the other. The client with the fewest running videos is next, then the one served longest ago.
Heavy videos leave one decoder to light ones. Where heavy videos hold all decoders, the last started
is preempted for a waiting light one, and queues again.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable

from metok_vllm.errors import MediaAbandonedError, MediaBusyError
from metok_vllm.video.memory import MemoryBudget
from metok_vllm.video.queue_entry import QueueEntry

# A video that is decoded for longer counts as heavy.
HEAVY_S = 4.0
# Returned memory wakes no waiter, so waiters poll; the first that waits for memory polls fast.
POLL_S, POLL_MEMORY_S = 0.5, 0.02
# A video that has waited so long for memory is the next to get any.
MEMORY_PATIENCE_S = 2.0
# A full collection takes most of a second in a large process, so it is rate-limited.
COLLECT_EVERY_S = 10.0
MAX_SERVED = 1024  # clients in the order of service


class DecodeQueue:
    """All waiting and running videos of a process, and their memory. Thread-safe."""

    def __init__(self, memory: MemoryBudget) -> None:
        self.memory = memory
        self._lock = threading.Lock()
        self._waiting: list[QueueEntry] = []
        self._running: list[QueueEntry] = []
        self._served: dict[str, int] = {}
        self._count = 0
        self._last_was_heavy = False
        self._collected_s = -COLLECT_EVERY_S
        self._closed = False

    def wait(self, entry: QueueEntry, seconds: float) -> None:
        """Return once the video has a decoder and memory; `release` returns both.

        Raises MediaBusyError after `seconds`, or at once where the queue is full, and
        MediaAbandonedError when the request or the server ends meanwhile.
        """
        deadline = entry.since + seconds
        with self._lock:
            self._enqueue(entry)
            self._schedule()
        try:
            while not entry.event.wait(self._poll_interval(entry, deadline)):
                with self._lock:
                    self._schedule()
                    if not entry.event.is_set() and time.monotonic() >= deadline:
                        self._time_out(entry)
        except BaseException:
            self.release(entry)
            raise
        if entry.refusal is not None:
            self.release(entry)
            raise entry.refusal

    def release(self, entry: QueueEntry, *, again: bool = False) -> None:
        """Return decoder and memory; `again`: the video will queue once more."""
        with self._lock:
            entry.kill = None
            if entry in self._waiting:
                self._waiting.remove(entry)
            if entry in self._running:
                self._running.remove(entry)
                self._mark_served(entry)
            if entry.memory is not None:
                entry.memory.give_back(again=again)
                entry.memory = None
            self._schedule()
            if len(self._served) > MAX_SERVED or not (self._waiting or self._running):
                self._served.clear()

    def start(self, entry: QueueEntry, kill: Callable[[], None]) -> bool:
        """Let `kill` end the decoding until `finish`; False where the entry is stopped already."""
        with self._lock:
            if not entry.stopped:
                entry.kill = kill
                entry.since = time.monotonic()
            return not entry.stopped

    def finish(self, entry: QueueEntry) -> None:
        """The decoding is over: its decoder is not killed from now on."""
        with self._lock:
            entry.kill = None

    def cancel(self, entry: QueueEntry) -> None:
        """The request has ended: its video stops waiting, or its decoding is killed."""
        with self._lock:
            entry.refusal = MediaAbandonedError("the request has ended; its video is not read")
            if entry in self._waiting:
                self._waiting.remove(entry)
            entry.stop()

    def close(self) -> None:
        """The server ends: refuse all videos, now and from now on."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            for entry in (*waiting, *self._running):
                entry.refusal = _closing()
                entry.stop()

    def _enqueue(self, entry: QueueEntry) -> None:
        if self._closed:
            raise _closing()
        if entry.refusal is not None:
            raise entry.refusal
        limits = entry.limits
        if len(self._waiting) >= limits.max_waiting:
            full = MediaBusyError(
                f"{limits.max_waiting} videos wait to be decoded already, the most this server "
                "lets wait; try again later"
            )
            # The client with most waiting videos loses its last one to a client with fewer.
            counts = Counter(other.requester.client for other in self._waiting)
            client, most = counts.most_common(1)[0]
            if most <= counts[entry.requester.client] + 1:
                raise full
            last = [other for other in self._waiting if other.requester.client == client][-1]
            last.refusal = full
            last.stop()
            self._waiting.remove(last)
        self._waiting.append(entry)

    def _poll_interval(self, entry: QueueEntry, deadline: float) -> float:
        first = next((other for other in list(self._waiting) if other.blocked), None)
        left = max(0.0, deadline - time.monotonic())
        return min(POLL_MEMORY_S if first is entry else POLL_S, left)

    def _time_out(self, entry: QueueEntry) -> None:
        # Frames in reference cycles hold memory until a full collection.
        if entry.blocked and self._collect_garbage():
            self._schedule()
            if entry.event.is_set():
                return
        entry.refusal = entry.timeout_error()
        entry.event.set()

    def _collect_garbage(self) -> bool:
        if time.monotonic() - self._collected_s < COLLECT_EVERY_S:
            return self.memory.collect()
        gc.collect()
        self._collected_s = time.monotonic()
        return True

    def _schedule(self) -> None:
        """Give free decoders to waiting videos."""
        while (entry := self._next()) is not None:
            self._waiting.remove(entry)
            self._running.append(entry)
            self._mark_served(entry)
            self._last_was_heavy = entry.heavy
            entry.since = time.monotonic()
            entry.event.set()
        self._preempt()

    def _mark_served(self, entry: QueueEntry) -> None:
        self._count += 1
        self._served[entry.requester.client] = self._count

    def _next(self) -> QueueEntry | None:
        """The next waiting video that may be decoded now, its memory taken."""
        order = self._in_order()
        patience = time.monotonic() - MEMORY_PATIENCE_S
        starving = [entry for entry in order if entry.short and entry.since < patience]
        if starving:
            # Only requests that hold memory go beside it: they return it when they end.
            first = min(starving, key=lambda entry: entry.since)
            holders = [entry for entry in order if self.memory.holds(entry.account)]
            order = [first] + [entry for entry in holders if entry is not first]
        for entry in order:
            if len(self._running) >= entry.limits.decode_workers:
                continue
            limit = entry.limits.max_pending_bytes
            entry.memory = self.memory.take(entry.account, entry.num_bytes, limit)
            entry.blocked = entry.memory is None
            entry.short = entry.blocked and self.memory.used + entry.num_bytes > limit
            if entry.memory is not None:
                return entry
        return None

    def _in_order(self) -> list[QueueEntry]:
        """Waiting videos, the next first; heavy ones last where they would hold all decoders."""
        running = Counter(entry.requester.client for entry in self._running)
        num_heavy = len(self._heavy_running())

        def rank(entry: QueueEntry) -> tuple[bool, int, int, float]:
            client = entry.requester.client
            too_many = entry.heavy and num_heavy >= max(1, entry.limits.decode_workers - 1)
            later = too_many or entry.heavy == self._last_was_heavy
            return later, running[client], self._served.get(client, 0), entry.since

        return sorted(self._waiting, key=rank)

    def _heavy_running(self) -> list[QueueEntry]:
        """Running videos that were found to be heavy, or have been decoded for long."""
        long_ago = time.monotonic() - HEAVY_S
        return [e for e in self._running if e.heavy or (e.kill is not None and e.since < long_ago)]

    def _preempt(self) -> None:
        """Stop the last started heavy video where they hold all decoders and a light one waits."""
        heavy = self._heavy_running()
        if any(entry.stopped for entry in self._running) or len(heavy) < 2:
            return
        last = heavy[-1]
        for entry in self._waiting:
            if not entry.heavy and len(heavy) >= entry.limits.decode_workers:
                last.preempted = True
                last.stop()
                return


def _closing() -> MediaAbandonedError:
    return MediaAbandonedError("the server is ending; its videos are not read")
