"""The end of a request that is work: its deadline, or its client leaving, ends all it started."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware.envelope import error_body, send_error
from metok_vllm.server.middleware.key_check import TENANT, client_of
from metok_vllm.server.middleware.paths import is_work
from metok_vllm.video.requester import REQUESTER, Requester

# How long work that was told of its end may take to stop, and a last word to be sent.
CANCEL_GRACE_S = 5.0
SEND_GRACE_S = 1.0
# Pieces that an app may send into the void before it has to let others run.
MAX_DROPPED = 100
EVENT_STREAM = b"text/event-stream"


class Deadline:
    """Ends a request that is work after `seconds` (0: never), and when its client leaves.

    Before the response has begun that is a 504; a stream ends with an error event and `[DONE]`.
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
        # The work comes first: a client that does not read would hold up whoever sends to it.
        exchange.finish()
        if exchange.sending:
            task.cancel()
        stopping = asyncio.wait({task}, timeout=CANCEL_GRACE_S)
        await asyncio.gather(stopping, self._last_word(exchange) if expired else _nothing())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task

    async def _last_word(self, exchange: _Exchange) -> None:
        text = f"The request did not finish within {self.seconds:g} seconds and was stopped."
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEND_GRACE_S):
                if not exchange.started:
                    await send_error(exchange.raw_send, 504, text)
                elif exchange.is_stream and not exchange.complete:
                    event = b"data: " + error_body(504, text) + b"\n\ndata: [DONE]\n\n"
                    await exchange.raw_send({"type": "http.response.body", "body": event})


async def _nothing() -> None:
    pass


class _Exchange:
    """What the app receives and sends, until it is over; from then on both are cut."""

    def __init__(self, receive: Receive, send: Send, requester: Requester) -> None:
        self._receive = receive
        self.raw_send = send
        self._requester = requester
        self.over = asyncio.Event()
        self._listener: asyncio.Future[None] | None = None
        self._dropped = 0
        self.started = self.is_stream = self.complete = self.sending = False

    async def receive(self) -> Message:
        """The body; then, for the rest of the request, nothing until it is over."""
        if self._listener is None:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.finish()
            elif not message.get("more_body"):
                # Some routes never look whether their client is still there.
                self._listener = asyncio.ensure_future(self._listen())
            return message
        # vLLM aborts a request whose client goes away; that is what it is shown here.
        await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """As the server's, unless it is over."""
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
            # Cancelled here, a stream's generator would hear of it from the garbage collector, and
            # the engine would go on until then. Its next piece is where it is cancelled again.
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
        """Nobody waits for the answer any more."""
        self._requester.finish()
        self.over.set()

    def close(self) -> None:
        """The app is done with it."""
        self._requester.finish()
        if self._listener is not None:
            self._listener.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.finish()


def requester_of(scope: Scope) -> Requester:
    """The client of a request, as those see it who read its media."""
    return Requester(client=client_of(scope), tenant=str(scope.get(TENANT, "")))
