"""Who a video is read for: its turn, its part of the caches, and whether it is still wanted.

The HTTP layer sets `REQUESTER` for each request; a thread that reads media runs in a copy of that
context. Outside of a server (`read_video` in a script) there is one anonymous requester a call.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Requester:
    """One request for media; thread-safe.

    `client` shares the decoders fairly with other clients, `tenant` keeps cached media apart,
    `videos` is how many videos the request holds. Each is set before the first one is read.
    """

    def __init__(self, client: str = "", tenant: str = "", videos: int = 1) -> None:
        self.client = client
        self.tenant = tenant
        self.videos = videos
        self._lock = threading.Lock()
        self._gone = False
        self._callbacks: list[Callable[[], None]] = []

    def add_salt(self, salt: str | None) -> None:
        """Keep the media of this request apart by a salt of the client's own, too."""
        if salt:
            joined = f"{self.tenant}:{salt}".encode()
            self.tenant = hashlib.sha256(joined).hexdigest()

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._gone

    def leave(self) -> None:
        """The request is over: runs the callbacks of `on_leave` once, in this thread."""
        with self._lock:
            self._gone = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    @contextmanager
    def on_leave(self, callback: Callable[[], None]) -> Iterator[None]:
        """Run `callback`, which must not block, if the request ends inside this block."""
        with self._lock:
            gone = self._gone
            if not gone:
                self._callbacks.append(callback)
        if gone:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


REQUESTER: ContextVar[Requester | None] = ContextVar("metok_requester", default=None)


def current() -> Requester:
    """The requester of this context; a new anonymous one where nobody set any."""
    return REQUESTER.get() or Requester()
