"""The memory of fetched media, from their first byte until they are decoded."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

from metok_vllm.errors import MediaBusyError
from metok_vllm.video.channel import anonymous_file
from metok_vllm.video.limits import flag_of

# One client may hold all of it but this fraction (an eighth), so that others get in.
RESERVED_FRACTION = 8


@dataclass(eq=False)
class RunningFetch:
    """One fetch, the client it runs for, and what it holds. `deadline` bounds the download.

    A `complete` one holds its bytes until they are decoded, and is not ended for others.
    """

    client: str
    deadline: asyncio.Timeout
    file: BinaryIO = field(default_factory=anonymous_file)
    num_bytes: int = 0
    cancelled: bool = False
    complete: bool = False

    def cancel(self) -> None:
        """End the fetch by moving its deadline to now."""
        self.cancelled = True
        self.deadline.reschedule(asyncio.get_running_loop().time())


class FetchBudget:
    """Bytes that all fetches hold at once, from their first byte until they are decoded.

    Over the limit, the largest running fetch of the client with the most bytes is ended. Complete
    ones are not, so a client gets at most 7 in 8 of the limit with them. `add` runs in the fetch
    loop, `release` in any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fetches: set[RunningFetch] = set()

    def start(self, client: str, deadline: asyncio.Timeout) -> RunningFetch:
        """Count a fetch for `client` until `release`."""
        fetch = RunningFetch(client, deadline)
        with self._lock:
            self._fetches.add(fetch)
        return fetch

    def release(self, fetch: RunningFetch) -> None:
        """The bytes of a fetch are not held any longer."""
        with self._lock:
            self._fetches.discard(fetch)

    def add(self, fetch: RunningFetch, num_bytes: int, limit: int) -> None:
        """Count received bytes. Raises MediaBusyError if `fetch` itself must end."""
        fetch.num_bytes += num_bytes
        with self._lock:
            holding = [other for other in self._fetches if not other.cancelled]
        own = [other for other in holding if other.complete and other.client == fetch.client]
        share = limit - limit // RESERVED_FRACTION
        if own and sum(other.num_bytes for other in (*own, fetch)) > share:
            raise too_many_fetched_bytes()
        if sum(other.num_bytes for other in holding) <= limit:
            return
        client_bytes: Counter[str] = Counter()
        for other in holding:
            client_bytes[other.client] += other.num_bytes
        running = [other for other in holding if not other.complete]
        largest = max(
            running,
            key=lambda other: (client_bytes[other.client], other.num_bytes),
            default=fetch,
        )
        if largest is fetch:
            raise too_many_fetched_bytes()
        largest.cancel()


def too_many_fetched_bytes() -> MediaBusyError:
    """The error of a fetch that was ended to keep all fetches within the limit."""
    return MediaBusyError(
        "the server holds too much fetched media at once "
        f"({flag_of('max_fetched_bytes')}); try again later"
    )


BUDGET = FetchBudget()
