"""How many requests the server works on at once, and that a draining one takes no more."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm.server.middleware.envelope import RETRY_AFTER_S, send_error
from metok_vllm.server.middleware.key_check import client_of
from metok_vllm.server.middleware.lifecycle import Lifecycle, Phase
from metok_vllm.server.middleware.paths import is_work

# One of so many places is kept from a client that holds all the others.
PLACES_A_RESERVE = 8


class Refusal:
    """Answers work with 429 over `max_inflight` (0: no limit) and 503 while draining.

    One client never has all places. It counts nothing, so it can stand before the body is read and
    spare the client the sending.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, max_inflight: int) -> None:
        self.app = app
        self.lifecycle = lifecycle
        self.max_inflight = max_inflight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope):
            await self.app(scope, receive, send)
            return
        retry = {"retry-after": str(RETRY_AFTER_S)}
        if self.lifecycle.phase is Phase.DRAINING:
            text = "The server is shutting down and takes no new requests. Use another replica."
            await send_error(send, 503, text, headers=retry)
            return
        if self.max_inflight and self.lifecycle.inflight >= self.max_inflight:
            text = f"The server is answering {self.max_inflight} requests already. Try again later."
            await send_error(send, 429, text, headers=retry)
            return
        most = self.max_inflight - self.max_inflight // PLACES_A_RESERVE
        if self.max_inflight and self.lifecycle.held_by(client_of(scope)) >= most:
            text = f"The server is answering {most} requests of yours already. Try again later."
            await send_error(send, 429, text, headers=retry)
            return
        await self.take(scope, receive, send)

    async def take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The request may go on."""
        await self.app(scope, receive, send)


class Admission(Refusal):
    """Refuses likewise, and counts what it lets in: authenticated, and with its body there."""

    async def take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counted from here until its answer is done."""
        client = client_of(scope)
        self.lifecycle.enter(client)
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.leave(client)
