"""How much memory decoded videos may take in this process, all of them together.

A request may hold some of its videos while it waits for memory for the others. It is given some
only if all requests that hold any can still get all that they may ask for, one after the other
(the banker's algorithm), so that no two of them ever wait for each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from metok_vllm.video.requester import Requester


@dataclass(eq=False)
class Holder:
    """A request that holds memory, and how much more its other videos may need at most."""

    requester: Requester
    held: int = 0
    begun: int = 0  # videos that were given memory
    bound: int = 0  # bytes that one more may take

    @property
    def claim(self) -> int:
        """Bytes that it may still ask for."""
        if self.requester.gone:
            return 0
        return max(0, self.requester.videos - self.begun) * self.bound


class Reservation:
    """Bytes that one video may take while it is read."""

    def __init__(self, holder: Holder, num_bytes: int, returned: SimpleQueue[Returned]) -> None:
        self.num_bytes = num_bytes
        self._holder = holder
        self._returned = returned

    def hand_over(self, owner: object, num_bytes: int) -> None:
        """Let `num_bytes` of it last until `owner`, which holds the memory, is collected."""
        assert num_bytes <= self.num_bytes, f"{num_bytes} of {self.num_bytes} bytes"
        weakref.finalize(owner, self._returned.put, (self._holder, num_bytes))
        self.num_bytes -= num_bytes

    def give_back(self, *, again: bool = False) -> None:
        """What was not handed over is free; `again`: the video asks anew, so it is still claimed.

        Under the lock that guards the budget.
        """
        self._holder.begun -= again
        self._returned.put((self._holder, self.num_bytes))
        self.num_bytes = 0


Returned = tuple[Holder, int]


class MemoryBudget:
    """Bytes promised to videos, from before they are decoded until their frames are gone.

    Not thread-safe but for what comes back: one lock of the caller's guards the rest. `relieve`
    lets go of something that may give bytes back, or returns False.
    """

    def __init__(self, relieve: Callable[[], bool] = lambda: False) -> None:
        self._relieve = relieve
        self.used = 0
        self._holders: dict[Requester, Holder] = {}
        # Bytes come back from finalizers, which may run in the middle of anything, even in the
        # thread that has the lock: `put` takes no lock that such code can hold.
        self._returned: SimpleQueue[Returned] = SimpleQueue()

    def holds(self, requester: Requester) -> bool:
        """Whether the request has memory already."""
        return requester in self._holders

    def take(self, requester: Requester, num_bytes: int, limit: int) -> Reservation | None:
        """Give a request memory for one video; None while that could block somebody for good."""
        assert 0 < num_bytes <= limit, f"{num_bytes} of {limit} bytes can never be had"
        self.collect()
        while not self._safe(requester, num_bytes, limit):
            if not self._relieve():
                return None
            self.collect()
        holder = self._holders.setdefault(requester, Holder(requester))
        holder.held += num_bytes
        holder.begun += 1
        holder.bound = num_bytes
        self.used += num_bytes
        return Reservation(holder, num_bytes, self._returned)

    def collect(self) -> bool:
        """Count what came back; whether there was any."""
        any_came = False
        while True:
            try:
                holder, num_bytes = self._returned.get_nowait()
            except Empty:
                return any_came
            any_came = True
            self.used -= num_bytes
            holder.held -= num_bytes
            if not holder.held and self._holders.get(holder.requester) is holder:
                del self._holders[holder.requester]

    def _safe(self, requester: Requester, num_bytes: int, limit: int) -> bool:
        free = limit - self.used - num_bytes
        if free < 0:
            return False
        asking = self._holders.get(requester, Holder(requester))
        more = max(0, requester.videos - asking.begun - 1) * num_bytes
        asking_for = 0 if requester.gone else min(more, limit - asking.held - num_bytes)
        needs = [(asking_for, asking.held + num_bytes)]
        others = (holder for holder in self._holders.values() if holder is not asking)
        needs += [(min(holder.claim, limit - holder.held), holder.held) for holder in others]
        for claim, held in sorted(needs):
            if claim > free:
                return False
            free += held
        return True
