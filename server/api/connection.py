"""The connection below a request: headers that never end, answers that nobody reads.

uvicorn has no time limit for either. `register` puts this class in the place of uvicorn's own, in
every process that loads the endpoint plugin, however the server was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from metok_vllm.server.settings import ServerSettings

# Bytes that may come without a request's headers or body getting on.
MAX_HEAD_BYTES = 64 << 10
# Who reads less than this in the time for writing has stopped reading.
MIN_READ_BYTES = 1 << 10
# How long a client may go on sending a body after its request was answered.
LINGER_S = 10.0
LAST_WORDS = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TIMEOUT = LAST_WORDS % b"408 Request Timeout"
TOO_LARGE = LAST_WORDS % b"431 Request Header Fields Too Large"


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP connection, with limits on headers and on unread answers."""

    header_timeout_s = 0.0
    write_timeout_s = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._stray = self._unread = 0
        self._got_on = False

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        """A client is there; its headers have to follow."""
        super().connection_made(transport)
        self._start(self._headers_late, self.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was cut off."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; too many that belong to nothing end the connection."""
        self._got_on = False
        super().data_received(data)
        if self._is_lost() or self.transport.is_closing():
            return
        self._stray = 0 if self._got_on else self._stray + len(data)
        if self._stray > MAX_HEAD_BYTES:
            self._close_with(TOO_LARGE)
        elif self._is_idle():
            self._start(self._headers_late, self.header_timeout_s)

    def handle_websocket_upgrade(self) -> None:
        """Another protocol takes over."""
        self._stop(self._headers_late)
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        """A request begins."""
        self._got_on = True
        for act in (self._headers_late, self._close, self._check_reading):
            self._stop(act)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body has come."""
        self._got_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the body has come."""
        self._got_on = True
        self._stop(self._close)
        if self.cycle is not None:
            self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered; the client still has to read that, and to stop sending."""
        super().on_response_complete()
        if not self.pipeline and self.cycle.more_body:
            self._start(self._close, LINGER_S)
        self._watch_reading()

    def pause_writing(self) -> None:
        """More is waiting to be read than shall wait, and nothing is added to it."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """Most of it was read."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._watch_reading()
        else:
            self._stop(self._check_reading)

    def _is_idle(self) -> bool:
        """Whether the next bytes belong to the headers of a request."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None:
            return True
        return cycle.response_complete and not cycle.more_body and not self.pipeline

    def _headers_late(self) -> None:
        if self._is_idle():
            self._close_with(TIMEOUT if self._stray else b"")

    def _watch_reading(self) -> None:
        """From now on, what waits to be read has to become less."""
        self._stop(self._check_reading)
        if not self._is_lost():
            self._unread = self._waiting_bytes()
            if self._unread:
                self._start(self._check_reading, self.write_timeout_s)

    def _check_reading(self) -> None:
        if self._is_lost():
            return
        before, self._unread = self._unread, self._waiting_bytes()
        if self._unread and before - self._unread < MIN_READ_BYTES:
            self.transport.abort()
        elif self._unread:
            self._start(self._check_reading, self.write_timeout_s)

    def _waiting_bytes(self) -> int:
        """Bytes that the client has not read; 0 when none are left here for it to make room for."""
        own = self.transport.get_write_buffer_size()
        if not own:
            return 0
        # The kernel takes more from us in large steps only, so a slow reader shows in its queue.
        queued = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, queued)
        return int(own) + int.from_bytes(queued, sys.byteorder)

    def _is_lost(self) -> bool:
        """Whether the connection is closed, or another protocol's."""
        return self not in self.connections

    def _close_with(self, last_words: bytes) -> None:
        if last_words:
            self.transport.write(last_words)
        self.transport.close()
        self._watch_reading()

    def _close(self) -> None:
        self.transport.close()

    def _start(self, act: Callable[[], None], seconds: float) -> None:
        def run() -> None:
            del self._timers[act]
            act()

        if seconds and act not in self._timers:
            self._timers[act] = self.loop.call_later(seconds, run)

    def _stop(self, act: Callable[[], None]) -> None:
        timer = self._timers.pop(act, None)
        if timer is not None:
            timer.cancel()


def connection_class(settings: ServerSettings) -> type[Connection]:
    """The class for connections of a server with these settings."""
    times = {
        "header_timeout_s": settings.header_timeout_s,
        "write_timeout_s": settings.write_timeout_s,
    }
    return type("Connection", (Connection,), times)


def register(settings: ServerSettings) -> None:
    """Make it uvicorn's choice wherever none is named, as vLLM's launchers do."""
    HTTP_PROTOCOLS["auto"] = connection_class(settings)  # type: ignore[assignment]
