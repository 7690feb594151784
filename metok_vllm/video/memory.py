"""The memory that decoded videos may take in this process, all together.

A request may hold frames of some videos while it waits for memory for the others. Memory is granted
only where all holders can still get all that they may claim, one after the other (the banker's
algorithm). So no two requests wait for each other.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from metok_vllm.video.requester import Requester


@dataclass(eq=False)
class Holder:
    """A request that holds memory, and what its remaining videos may claim."""

    requester: Requester
    held: int = 0
    begun: int = 0  # videos that were granted memory
    bound: int = 0  # bytes that one more may take

    @property
    def claim(self) -> int:
        """Bytes that it may still ask for."""
        if self.requester.finished:
            return 0
        return max(0, self.requester.videos - self.begun) * self.bound


class Reservation:
    """Bytes that one video may take while it is read."""

    def __init__(self, holder: Holder, num_bytes: int, returned: SimpleQueue[Returned]) -> None:
        self.num_bytes = num_bytes
        self._holder = holder
        self._returned = returned

    def hand_over(self, owner: object, num_bytes: int) -> None:
        """Keep `num_bytes` reserved until `owner`, which holds the memory, is collected."""
        assert num_bytes <= self.num_bytes, f"{num_bytes} of {self.num_bytes} bytes"
        weakref.finalize(owner, self._returned.put, (self._holder, num_bytes))
        self.num_bytes -= num_bytes

    def give_back(self, *, again: bool = False) -> None:
        """Free what was not handed over; `again`: the video queues again, so keep its claim.

        The caller holds the lock that guards the budget.
        """
        self._holder.begun -= again
        self._returned.put((self._holder, self.num_bytes))
        self.num_bytes = 0


Returned = tuple[Holder, int]


class MemoryBudget:
    """Bytes reserved for videos, from before they are decoded until their frames are collected.

    The caller's lock guards all methods; only returned bytes arrive from other threads. `evict`
    frees cached frames, or returns False where there are none.
    """

    def __init__(self, evict: Callable[[], bool] = lambda: False) -> None:
        self._evict = evict
        self.used = 0
        self._holders: dict[Requester, Holder] = {}
        # Finalizers return bytes and may run anywhere, even in the thread that holds the lock:
        # `put` takes no lock that such code can hold.
        self._returned: SimpleQueue[Returned] = SimpleQueue()

    def holds(self, requester: Requester) -> bool:
        """Whether the request has memory already."""
        return requester in self._holders

    def take(self, requester: Requester, num_bytes: int, limit: int) -> Reservation | None:
        """Reserve memory for one video; None where that could deadlock requests."""
        assert 0 < num_bytes <= limit, f"{num_bytes} of {limit} bytes can never be had"
        self.collect()
        while not self._safe(requester, num_bytes, limit):
            if not self._evict():
                return None
            self.collect()
        holder = self._holders.setdefault(requester, Holder(requester))
        holder.held += num_bytes
        holder.begun += 1
        holder.bound = num_bytes
        self.used += num_bytes
        return Reservation(holder, num_bytes, self._returned)

    def collect(self) -> bool:
        """Count returned bytes as free; whether there were any."""
        any_returned = False
        while True:
            try:
                holder, num_bytes = self._returned.get_nowait()
            except Empty:
                return any_returned
            any_returned = True
            self.used -= num_bytes
            holder.held -= num_bytes
            if not holder.held and self._holders.get(holder.requester) is holder:
                del self._holders[holder.requester]

    def _safe(self, requester: Requester, num_bytes: int, limit: int) -> bool:
        """Whether all holders can get their claims one after the other if this is granted."""
        free = limit - self.used - num_bytes
        if free < 0:
            return False
        asking = self._holders.get(requester, Holder(requester))
        more = max(0, requester.videos - asking.begun - 1) * num_bytes
        claim = 0 if requester.finished else min(more, limit - asking.held - num_bytes)
        needs = [(claim, asking.held + num_bytes)]
        others = (holder for holder in self._holders.values() if holder is not asking)
        needs += [(min(holder.claim, limit - holder.held), holder.held) for holder in others]
        for claim, held in sorted(needs):
            if claim > free:
                return False
            free += held
        return True
