"""An event loop of their own for fetches, in a thread.

Parsing what a hostile host sends (a body in pieces of one byte, interim responses without end) and
looking up its name would hold up the server's loop and its threads.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# Each looks up a name, which takes as long as the system's resolver has patience.
LOOKUP_THREADS = 64


class FetchLoop:
    """Started when first needed; runs coroutines of any thread and any loop."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled when the caller is."""
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        return await asyncio.wrap_future(future)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                loop.set_default_executor(
                    ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="metok-lookup")
                )
                threading.Thread(target=loop.run_forever, name="metok-fetch", daemon=True).start()
                self._loop = loop
            return self._loop


LOOP = FetchLoop()
# A forked child has none of its parent's threads.
os.register_at_fork(after_in_child=LOOP._reset)
