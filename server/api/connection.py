"""Time limits of HTTP connections: for headers to arrive, and for answers to be read.

uvicorn has neither. `register` replaces uvicorn's connection class in every process that loads
the endpoint plugin, however the server was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from metok_vllm.server.settings import ServerSettings

# Bytes of incomplete headers, or outside of any request, that a client may send.
MAX_HEAD_BYTES = 64 << 10
# A client that reads fewer bytes than this within `write_timeout_s` is disconnected.
MIN_READ_BYTES = 1 << 10
# How long a client may keep sending the body of a request that is already answered.
LINGER_S = 10.0
CLOSING_RESPONSE = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TIMEOUT = CLOSING_RESPONSE % b"408 Request Timeout"
TOO_LARGE = CLOSING_RESPONSE % b"431 Request Header Fields Too Large"


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP connection, with limits on headers and on unread answers."""

    header_timeout_s = 0.0
    write_timeout_s = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._stray_bytes = self._unread_bytes = 0
        self._progressed = False

    def connection_made(self, transport: Any) -> None:
        """Start the time limit for headers."""
        super().connection_made(transport)
        self._start_timer(self._on_header_timeout, self.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Close the connection after too many bytes that complete no headers or body."""
        self._progressed = False
        super().data_received(data)
        if self._is_lost() or self.transport.is_closing():
            return
        self._stray_bytes = 0 if self._progressed else self._stray_bytes + len(data)
        if self._stray_bytes > MAX_HEAD_BYTES:
            self._close_with(TOO_LARGE)
        elif self._is_idle():
            self._start_timer(self._on_header_timeout, self.header_timeout_s)

    def handle_websocket_upgrade(self) -> None:
        """Stop the time limit for headers: the connection is another protocol's now."""
        self._stop_timer(self._on_header_timeout)
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        """Stop all timers: a request begins."""
        self._progressed = True
        for action in (self._on_header_timeout, self._close, self._check_reading):
            self._stop_timer(action)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note progress: a part of the body has arrived."""
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop waiting for the body."""
        self._progressed = True
        self._stop_timer(self._close)
        if self.cycle is not None:
            self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the time limits for reading the answer and for the end of the body."""
        super().on_response_complete()
        if not self.pipeline and self.cycle.more_body:
            self._start_timer(self._close, LINGER_S)
        self._watch_reading()

    def pause_writing(self) -> None:
        """Start the time limit for reading: the write buffer is full."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """Stop the time limit for reading, unless the answer is complete."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._watch_reading()
        else:
            self._stop_timer(self._check_reading)

    def _is_idle(self) -> bool:
        """Whether the next bytes are the headers of a request."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is None:
            return True
        return cycle.response_complete and not cycle.more_body and not self.pipeline

    def _on_header_timeout(self) -> None:
        if self._is_idle():
            self._close_with(TIMEOUT if self._stray_bytes else b"")

    def _watch_reading(self) -> None:
        """Start the time limit in which unread bytes must decrease."""
        self._stop_timer(self._check_reading)
        if not self._is_lost():
            self._unread_bytes = self._count_unread()
            if self._unread_bytes:
                self._start_timer(self._check_reading, self.write_timeout_s)

    def _check_reading(self) -> None:
        if self._is_lost():
            return
        before, self._unread_bytes = self._unread_bytes, self._count_unread()
        if self._unread_bytes and before - self._unread_bytes < MIN_READ_BYTES:
            self.transport.abort()
        elif self._unread_bytes:
            self._start_timer(self._check_reading, self.write_timeout_s)

    def _count_unread(self) -> int:
        """Bytes that the client has not read; 0 if the kernel has taken all of them."""
        own = self.transport.get_write_buffer_size()
        if not own:
            return 0
        # The kernel takes bytes in large steps; a slow client's progress shows in its queue only.
        queued = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket"), termios.TIOCOUTQ, queued)
        return int(own) + int.from_bytes(queued, sys.byteorder)

    def _is_lost(self) -> bool:
        """Whether the connection is closed or another protocol's."""
        return self not in self.connections

    def _close_with(self, response: bytes) -> None:
        if response:
            self.transport.write(response)
        self.transport.close()
        self._watch_reading()

    def _close(self) -> None:
        self.transport.close()

    def _start_timer(self, action: Callable[[], None], seconds: float) -> None:
        def run() -> None:
            del self._timers[action]
            action()

        if seconds and action not in self._timers:
            self._timers[action] = self.loop.call_later(seconds, run)

    def _stop_timer(self, action: Callable[[], None]) -> None:
        timer = self._timers.pop(action, None)
        if timer is not None:
            timer.cancel()


def connection_class(settings: ServerSettings) -> type[Connection]:
    """The connection class with the time limits of `settings`."""
    times = {
        "header_timeout_s": settings.header_timeout_s,
        "write_timeout_s": settings.write_timeout_s,
    }
    return type("Connection", (Connection,), times)


def register(settings: ServerSettings) -> None:
    """Make it uvicorn's default class, which vLLM's launchers use."""
    cast("dict[str, Any]", HTTP_PROTOCOLS)["auto"] = connection_class(settings)
