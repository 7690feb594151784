"""Requests in flight: refused over a limit or while draining, counted, and ended at a deadline."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware.access import TENANT, client_of, is_work
from metok_vllm.server.middleware.envelope import RETRY_AFTER_S, error_body, send_error
from metok_vllm.server.middleware.lifecycle import Lifecycle, Phase
from metok_vllm.video.requester import REQUESTER, Requester

# One client may have all slots but this fraction (an eighth), so that others get in.
RESERVED_FRACTION = 8
# How long cancelled work may take to stop, and the final error to be sent.
CANCEL_GRACE_S = 5.0
SEND_GRACE_S = 1.0
# Messages of an ended request that are dropped before its app must yield to the event loop.
MAX_DROPPED = 100
EVENT_STREAM = b"text/event-stream"


class Refusal:
    """Answers work with 429 over `max_inflight` (0: no limit) and with 503 while draining.

    A single client gets 7 in 8 of the slots. This class counts nothing: it is placed before the
    body is read, so that a refused client need not send it.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, max_inflight: int) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.max_inflight = max_inflight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
        elif refusal := self._refusal(client_of(scope)):
            status, text = refusal
            await send_error(send, status, text, headers={"retry-after": str(RETRY_AFTER_S)})
        else:
            await self.admit(scope, receive, send)

    def _refusal(self, client: str) -> tuple[int, str] | None:
        """Status and message for a new request of `client`; None if it is admitted."""
        if self.lifecycle.phase is Phase.DRAINING:
            text = "The server is shutting down and takes no new requests. Use another replica."
            return 503, text
        limit = self.max_inflight
        if limit and self.lifecycle.inflight >= limit:
            return 429, f"The server is answering {limit} requests already. Try again later."
        share = limit - limit // RESERVED_FRACTION
        if limit and self.lifecycle.inflight_of(client) >= share:
            text = f"The server is answering {share} requests of yours already. Try again later."
            return 429, text
        return None

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an admitted request on."""
        await self.app(scope, receive, send)


class Admission(Refusal):
    """Refuses likewise, and counts each request that it admits until its answer is complete."""

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an admitted request on, counted as in flight."""
        client = client_of(scope)
        self.lifecycle.enter(client)
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.leave(client)


class Deadline:
    """Ends work after `seconds` (0: never), and when its client disconnects.

    At the deadline the client gets a 504. A stream that has begun ends with an error event and
    `[DONE]`.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        requester = requester_of(scope)
        exchange = _Exchange(receive, send, requester)
        token = REQUESTER.set(requester)
        task = asyncio.ensure_future(self.app(scope, exchange.receive, exchange.send))
        REQUESTER.reset(token)
        over = asyncio.ensure_future(exchange.over.wait())
        try:
            await asyncio.wait(
                {task, over},
                timeout=self.seconds or None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done() or exchange.complete:
                await task
                return
            await self._end(task, exchange, expired=not over.done())
        finally:
            task.cancel()
            over.cancel()
            exchange.close()

    async def _end(self, task: asyncio.Future[None], exchange: _Exchange, expired: bool) -> None:
        exchange.finish()
        if exchange.sending:
            # The client may read nothing, so the app is not left waiting for it.
            task.cancel()
        stopping = asyncio.wait({task}, timeout=CANCEL_GRACE_S)
        if expired:
            await asyncio.gather(stopping, self._send_timeout(exchange))
        else:
            await stopping
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    async def _send_timeout(self, exchange: _Exchange) -> None:
        text = f"The request did not finish within {self.seconds:g} seconds and was stopped."
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_GRACE_S):
                if not exchange.started:
                    await send_error(exchange.raw_send, 504, text)
                elif exchange.is_stream and not exchange.complete:
                    event = b"data: " + error_body(504, text) + b"\n\ndata: [DONE]\n\n"
                    await exchange.raw_send({"type": "http.response.body", "body": event})


class _Exchange:
    """The ASGI channels of one request. After its end the app sees a client that disconnected."""

    def __init__(self, receive: Receive, send: Send, requester: Requester) -> None:
        self._receive = receive
        self.raw_send = send
        self._requester = requester
        self.over = asyncio.Event()
        self._listener: asyncio.Future[None] | None = None
        self._dropped = 0
        self.started = self.is_stream = self.complete = self.sending = False

    async def receive(self) -> Message:
        """The body's messages; after the last, waits for the end and returns a disconnect."""
        if self._listener is None:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.finish()
            elif not message.get("more_body"):
                # Some routes never check whether their client is connected.
                self._listener = asyncio.ensure_future(self._listen())
            return message
        # vLLM aborts the requests of a client that disconnected.
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send a message; after the end of the request it is dropped."""
        if self.over.is_set():
            await self._drop()
            return
        if message["type"] == "http.response.start":
            self.started = True
            self.is_stream = any(
                name.lower() == b"content-type" and value.startswith(EVENT_STREAM)
                for name, value in message["headers"]
            )
        self.sending = True
        try:
            await self.raw_send(message)
        except asyncio.CancelledError:
            # If raised here, only the garbage collector would close a stream's generator, and the
            # engine would run until then. The next `send` or `receive` ends the stream instead.
            if not self.over.is_set():
                raise
            return
        finally:
            self.sending = False
        self.complete = message["type"] == "http.response.body" and not message.get("more_body")

    async def _drop(self) -> None:
        self._dropped += 1
        if self._dropped > MAX_DROPPED:
            await asyncio.sleep(0)

    def finish(self) -> None:
        """The client waits no longer for the answer."""
        self._requester.finish()
        self.over.set()

    def close(self) -> None:
        """The app has returned."""
        self._requester.finish()
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.finish()


def requester_of(scope: Scope) -> Requester:
    """The requester of a scope, for the code that reads its media."""
    return Requester(client=client_of(scope), tenant=str(scope.get(TENANT, "")))
