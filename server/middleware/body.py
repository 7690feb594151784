"""Reads the whole body of a request within limits, before any other code sees it."""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware.access import header, is_upload, route_path
from metok_vllm.server.middleware.envelope import RETRY_AFTER_S, send_error
from metok_vllm.server.middleware.json_scan import MAX_LIST_ITEMS, JsonScan, ScanError

# Bodies up to this size are accepted even when others fill the memory.
SMALL_BODY = 1 << 20
# pydantic tries every item of this route against thirty types.
LIST_ITEMS = {"/v1/responses": 2_000}


class BodyReader:
    """Answers 413 to a body that is too large, 408 if it is too slow, 503 if memory is full.

    `limit`: bytes of one body; `total`: bytes of all bodies in memory; `seconds`: time to arrive;
    `max_text`: bytes of JSON without its media. 0 switches a limit off. If the client disconnects,
    the app is not called.
    """

    def __init__(
        self, app: ASGIApp, limit: int, *, total: int = 0, seconds: float = 0, max_text: int = 0
    ) -> None:
        self.app = app
        self.limit = limit
        self.total = total
        self.seconds = seconds
        self.max_text = max_text
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if self.limit and declared.isdigit() and int(declared) > self.limit:
            await send_error(send, 413, self._too_large())
            return
        body = _Body(self)
        try:
            if await self._read(body, scope, receive, send):
                await self.app(scope, body.replay(receive), send)
        finally:
            self.held -= body.size

    async def _read(self, body: _Body, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the body is complete. If not, the error is sent or the client disconnected."""
        items = LIST_ITEMS.get(route_path(scope), MAX_LIST_ITEMS)
        scan = None if is_upload(scope) else JsonScan(self.max_text, items)
        try:
            async with asyncio.timeout(self.seconds or None):
                return await body.read(receive, scan)
        except TimeoutError:
            text = f"The request body did not arrive within {self.seconds:g} seconds."
            await send_error(send, 408, text, headers={"connection": "close"})
        except ScanError as error:
            await send_error(send, error.status, str(error))
        except _TooLargeError:
            await send_error(send, 413, self._too_large())
        except _FullError:
            text = "The server holds as many request bodies as it can. Try again later."
            await send_error(send, 503, text, headers={"retry-after": str(RETRY_AFTER_S)})
        return False

    def _too_large(self) -> str:
        return f"The request body is over the limit of {self.limit} bytes (--metok-max-body-bytes)."


class _TooLargeError(Exception):
    """This body is over its limit."""


class _FullError(Exception):
    """All bodies together are over their limit."""


class _Body:
    """The chunks of one body. `size` counts in its reader's total until the request ends."""

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._chunks: deque[bytes] = deque()
        self.size = 0

    async def read(self, receive: Receive, scan: JsonScan | None) -> bool:
        """Read to the end; False if the client disconnects first."""
        reader, more = self._reader, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return False
            chunk, more = message.get("body", b""), message.get("more_body", False)
            if not chunk:
                continue
            self.size += len(chunk)
            reader.held += len(chunk)
            if reader.limit and self.size > reader.limit:
                raise _TooLargeError
            if reader.total and reader.held > reader.total and self.size > SMALL_BODY:
                raise _FullError
            if scan is not None:
                scan.feed(chunk)
            self._chunks.append(chunk)
        return True

    def replay(self, receive: Receive) -> Receive:
        """A `receive` that returns and frees the chunks, and then passes further messages on."""
        done = False

        async def replayed() -> Message:
            nonlocal done
            if done:
                return await receive()
            chunk = self._chunks.popleft() if self._chunks else b""
            done = not self._chunks
            return {"type": "http.request", "body": chunk, "more_body": not done}

        return replayed


def _has_body(scope: Scope) -> bool:
    chunked = header(scope, b"transfer-encoding")
    return bool(chunked) or header(scope, b"content-length") not in ("", "0")
