"""The request that a video is read for: its client, its tenant, and whether it has ended.

The HTTP layer sets `REQUESTER` for each request; a thread that reads media runs in a copy of that
context. Outside of a server (`read_video` in a script) each call has an anonymous requester.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Requester:
    """One request for media; thread-safe.

    Clients share the decoders fairly. Tenants do not share cached media. `videos` is how many
    videos the request has. All three are set before the first video is read.
    """

    def __init__(self, client: str = "", tenant: str = "", videos: int = 1) -> None:
        self.client = client
        self.tenant = tenant
        self.videos = videos
        self._lock = threading.Lock()
        self._finished = False
        self._callbacks: list[Callable[[], None]] = []

    def add_salt(self, salt: str | None) -> None:
        """Narrow the tenant by the request's own cache salt."""
        if salt:
            joined = f"{self.tenant}:{salt}".encode()
            self.tenant = hashlib.sha256(joined).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether the request has ended: answered, failed or aborted."""
        return self._finished

    def finish(self) -> None:
        """The request has ended: run the callbacks of `on_finish` once, in this thread."""
        with self._lock:
            self._finished = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextmanager
    def on_finish(self, callback: Callable[[], None]) -> Iterator[None]:
        """Run `callback`, which must not block, if the request ends inside this block."""
        with self._lock:
            finished = self._finished
            if not finished:
                self._callbacks.append(callback)
        if finished:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


REQUESTER: ContextVar[Requester | None] = ContextVar("metok_requester", default=None)


def current() -> Requester:
    """The requester of this context, or a new anonymous one."""
    return REQUESTER.get() or Requester()
