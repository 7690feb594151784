"""Whose video is decoded next: fair between clients, and small ones are not behind heavy ones.

A turn is a decoder and the memory for the frames, given together, so that nobody holds one while
waiting for the other. The client with the fewest turns, then the one served longest ago, is next.
Heavy videos leave one decoder to others: where they hold all, the last begun is ended for any
other video that waits, and waits for a new turn.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable

from metok_vllm.video.memory import MemoryBudget
from metok_vllm.video.turn import Turn, abandoned, closing, out_of_time, too_many

# Whoever is decoded for longer counts as heavy, whatever was expected.
HEAVY_S = 4.0
# Memory comes back without a word; the one that waits longest for it looks often.
LOOK_S, LOOK_OFTEN_S = 0.5, 0.02
# A video that has waited so long for memory is the next to get any.
MEMORY_PATIENCE_S = 2.0
# A full collection of a large process takes most of a second; a queue must not wait for one each.
COLLECT_EVERY_S = 10.0
MAX_REMEMBERED = 1024  # clients that were served


class Turns:
    """Thread-safe. One object guards the decoders and the memory of all videos of a process."""

    def __init__(self, memory: MemoryBudget) -> None:
        self.memory = memory
        self._lock = threading.Lock()
        self._waiting: list[Turn] = []
        self._running: list[Turn] = []
        self._served: dict[str, int] = {}
        self._count = 0
        self._last_was_heavy = False
        self._collected_s = -COLLECT_EVERY_S
        self._closed = False

    def wait(self, turn: Turn, seconds: float) -> None:
        """Return once it is this video's turn; give it back with `release`.

        Raises MediaBusyError after `seconds`, or at once where too many wait already, and
        MediaAbandonedError when the request ends meanwhile or the server does.
        """
        deadline = turn.since + seconds
        with self._lock:
            self._enter(turn)
            self._grant()
        try:
            while not turn.event.wait(self._look_after(turn, deadline)):
                with self._lock:
                    self._grant()
                    if not turn.event.is_set() and time.monotonic() >= deadline:
                        self._give_up(turn)
        except BaseException:
            self.release(turn)
            raise
        if turn.refusal is not None:
            self.release(turn)
            raise turn.refusal

    def release(self, turn: Turn, *, again: bool = False) -> None:
        """The turn is over; `again`: its video will wait for another one."""
        with self._lock:
            turn.kill = None
            if turn in self._waiting:
                self._waiting.remove(turn)
            if turn in self._running:
                self._running.remove(turn)
                self._count += 1
                self._served[turn.requester.client] = self._count
            if turn.memory is not None:
                turn.memory.give_back(again=again)
                turn.memory = None
            self._grant()
            if len(self._served) > MAX_REMEMBERED or not (self._waiting or self._running):
                self._served.clear()

    def begin(self, turn: Turn, kill: Callable[[], None]) -> bool:
        """From now on `kill` ends it, until `release`; False where it has ended already."""
        with self._lock:
            if not turn.ended:
                turn.kill = kill
                turn.since = time.monotonic()
            return not turn.ended

    def finish(self, turn: Turn) -> None:
        """Nothing ends its decoder from now on."""
        with self._lock:
            turn.kill = None

    def abandon(self, turn: Turn) -> None:
        """Nobody waits for this video any more: it stops waiting, or its decoding is ended."""
        with self._lock:
            turn.refusal = abandoned()
            if turn in self._waiting:
                self._waiting.remove(turn)
            turn.end()

    def close(self) -> None:
        """The server ends: refuse everybody, now and from now on."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            for turn in (*waiting, *self._running):
                turn.refusal = closing()
                turn.end()

    def heavy_now(self, turn: Turn) -> bool:
        """Whether it counts as heavy: it was found to be, or has been decoded for long."""
        decoding = turn.kill is not None
        return turn.heavy or (decoding and time.monotonic() - turn.since > HEAVY_S)

    def _enter(self, turn: Turn) -> None:
        if self._closed:
            raise closing()
        if turn.refusal is not None:
            raise turn.refusal
        if len(self._waiting) >= turn.limits.max_waiting:
            # A client that fills the queue makes room for others.
            counts = Counter(other.requester.client for other in self._waiting)
            client, most = counts.most_common(1)[0]
            if most <= counts[turn.requester.client] + 1:
                raise too_many(turn.limits)
            last = [other for other in self._waiting if other.requester.client == client][-1]
            last.refusal = too_many(turn.limits)
            last.end()
            self._waiting.remove(last)
        self._waiting.append(turn)

    def _look_after(self, turn: Turn, deadline: float) -> float:
        first = next((other for other in list(self._waiting) if other.blocked), None)
        left = max(0.0, deadline - time.monotonic())
        return min(LOOK_OFTEN_S if first is turn else LOOK_S, left)

    def _give_up(self, turn: Turn) -> None:
        # Frames in reference cycles stay until a full collection, rare in a large process.
        if turn.blocked and self._collect_garbage():
            self._grant()
            if turn.event.is_set():
                return
        turn.refusal = out_of_time(turn)
        turn.event.set()

    def _collect_garbage(self) -> bool:
        if time.monotonic() - self._collected_s < COLLECT_EVERY_S:
            return self.memory.collect()
        gc.collect()
        self._collected_s = time.monotonic()
        return True

    def _grant(self) -> None:
        while True:
            turn = self._next()
            if turn is None:
                break
            self._waiting.remove(turn)
            self._running.append(turn)
            self._count += 1
            self._served[turn.requester.client] = self._count
            self._last_was_heavy = turn.heavy
            turn.since = time.monotonic()
            turn.event.set()
        self._make_room()

    def _next(self) -> Turn | None:
        """The next waiting video that may be decoded now, its memory taken."""
        order = self._in_order()
        patience = time.monotonic() - MEMORY_PATIENCE_S
        starving = [turn for turn in order if turn.short and turn.since < patience]
        if starving:
            first = min(starving, key=lambda turn: turn.since)
            helpers = (turn for turn in order if self.memory.holds(turn.account))
            order = [first, *(turn for turn in helpers if turn is not first)]
        for turn in order:
            if len(self._running) >= turn.limits.decode_workers:
                continue
            limit = turn.limits.max_pending_bytes
            turn.memory = self.memory.take(turn.account, turn.num_bytes, limit)
            turn.blocked = turn.memory is None
            # Who waits for the claims of others to end takes nothing from those that come later.
            turn.short = turn.blocked and self.memory.used + turn.num_bytes > limit
            if turn.memory is not None:
                return turn
        return None

    def _in_order(self) -> list[Turn]:
        """Waiting videos, the next first; heavy ones only where they leave a decoder to others."""
        running = Counter(turn.requester.client for turn in self._running)
        num_heavy = sum(map(self.heavy_now, self._running))

        def rank(turn: Turn) -> tuple[bool, int, int, float]:
            client = turn.requester.client
            guest = turn.heavy and num_heavy >= max(1, turn.limits.decode_workers - 1)
            later = guest or turn.heavy == self._last_was_heavy
            return later, running[client], self._served.get(client, 0), turn.since

        return sorted(self._waiting, key=rank)

    def _make_room(self) -> None:
        """End the last begun of the heavy videos where they hold all decoders and others wait."""
        heavy = [turn for turn in self._running if self.heavy_now(turn)]
        if any(turn.ended for turn in self._running) or len(heavy) < 2:
            return
        last = heavy[-1]
        for turn in self._waiting:
            if not turn.heavy and len(heavy) >= turn.limits.decode_workers:
                last.preempted = True
                last.end()
                return
