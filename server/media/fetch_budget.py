"""How many bytes all fetches may hold at once. Whoever holds most gives way, not who comes last.

Used from the one loop that fetches.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from metok_vllm.errors import MediaBusy


@dataclass(eq=False)
class Holding:
    """What one fetch has received so far. `deadline` runs around the whole fetch."""

    client: str
    deadline: asyncio.Timeout
    num_bytes: int = 0
    gave_way: bool = False

    def give_way(self) -> None:
        """End the fetch: its deadline passes now."""
        self.gave_way = True
        self.deadline.reschedule(asyncio.get_running_loop().time())


class FetchBudget:
    """The fetches under way and their bytes."""

    def __init__(self) -> None:
        self._holdings: set[Holding] = set()

    @contextmanager
    def holding(self, client: str, deadline: asyncio.Timeout) -> Iterator[Holding]:
        """Count a fetch for `client` inside the block."""
        holding = Holding(client, deadline)
        self._holdings.add(holding)
        try:
            yield holding
        finally:
            self._holdings.discard(holding)

    def add(self, holding: Holding, num_bytes: int, limit: int) -> None:
        """Count bytes that have arrived. Raises MediaBusy where this fetch has to give way."""
        holding.num_bytes += num_bytes
        running = [held for held in self._holdings if not held.gave_way]
        if sum(held.num_bytes for held in running) <= limit:
            return
        of_client: Counter[str] = Counter()
        for held in running:
            of_client[held.client] += held.num_bytes
        most = max(running, key=lambda held: (of_client[held.client], held.num_bytes))
        if most is holding:
            raise busy()
        most.give_way()


def busy() -> MediaBusy:
    """The refusal of a fetch that gave way."""
    return MediaBusy("the server fetches too much media at once; try again later")


BUDGET = FetchBudget()
