"""What stands before vLLM's routes: the body limit, admission, and the deadline.

Plain ASGI classes, so a stream passes through chunk by chunk. Order, outermost first:
ErrorEnvelope (see envelope.py), BodyLimit, Admission, Deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.api.envelope import RETRY_AFTER_S, error_body, send_error
from metok_vllm.server.api.lifecycle import Lifecycle, Phase

# POST routes of vLLM that neither read media nor generate: they steer what runs, so they must work
# on a full or draining server, and some may take long. Everything else that is posted is work, so
# that a route vLLM adds is limited from the start.
CONTROL_PATHS = frozenset(
    {
        "/abort_requests",
        "/collective_rpc",
        "/fault_tolerance/apply",
        "/finish_weight_update",
        "/inference/v1/abort_requests",
        "/init_weight_transfer_engine",
        "/is_scaling_elastic_ep",
        "/pause",
        "/ping",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/resume",
        "/scale_elastic_ep",
        "/shutdown_weight_transfer_engine",
        "/sleep",
        "/start_draft_weight_update",
        "/start_profile",
        "/start_weight_update",
        "/stop_profile",
        "/update_weight_version",
        "/update_weights",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/wake_up",
        "/weight_checker",
    }
)
CANCEL = re.compile(r"/v1/responses/[^/]+/cancel")
CANCEL_GRACE_S = 5.0


class BodyLimit:
    """Answers 413 to a body over `limit` bytes, declared or counted while it arrives."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.limit:
            await self.app(scope, receive, send)
            return
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self.limit:
            await send_error(send, 413, self._message())
            return

        received, rejected = 0, False

        async def counted() -> Message:
            nonlocal received, rejected
            if rejected:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                # The app sees a client that went away; whatever it answers is dropped below.
                rejected = True
                await send_error(send, 413, self._message())
                return {"type": "http.disconnect"}
            return message

        async def unless_rejected(message: Message) -> None:
            if not rejected:
                await send(message)

        try:
            await self.app(scope, counted, unless_rejected)
        except Exception:
            if not rejected:
                raise

    def _message(self) -> str:
        return f"The request body is over the limit of {self.limit} bytes."


class Admission:
    """Counts requests that are work: 429 over `max_inflight` (0: no limit), 503 while draining."""

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
        self.lifecycle.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.lifecycle.leave()


class Deadline:
    """Ends a request that is work after `seconds` (0: never) and cancels its work.

    Before the response has begun that is a 504; a stream ends with an error event and `[DONE]`.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_work(scope) or not self.seconds:
            await self.app(scope, receive, send)
            return
        expired = asyncio.Event()
        started = finished = False

        async def until_expired() -> Message:
            # vLLM aborts a request whose client goes away; that is what it is shown here.
            return await _first(receive, expired)

        async def tracked(message: Message) -> None:
            nonlocal started, finished
            if expired.is_set():
                return
            started = True
            finished = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        task = asyncio.ensure_future(self.app(scope, until_expired, tracked))
        try:
            await asyncio.wait({task}, timeout=self.seconds)
            if task.done():
                await task
                return
            expired.set()
            if not started:
                await send_error(send, 504, self._message())
            elif not finished:
                event = b"data: " + error_body(504, self._message()) + b"\n\ndata: [DONE]\n\n"
                await send({"type": "http.response.body", "body": event})
            await asyncio.wait({task}, timeout=CANCEL_GRACE_S)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                if expired.is_set():
                    await task

    def _message(self) -> str:
        return f"The request did not finish within {self.seconds:g} seconds and was stopped."


async def _first(receive: Receive, expired: asyncio.Event) -> Message:
    message = asyncio.ensure_future(receive())
    expiry = asyncio.ensure_future(expired.wait())
    try:
        await asyncio.wait((message, expiry), return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            return message.result()
        return {"type": "http.disconnect"}
    finally:
        message.cancel()
        expiry.cancel()


def is_work(scope: Scope) -> bool:
    """Whether this request can make the server read media or generate."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
    return path not in CONTROL_PATHS and CANCEL.fullmatch(path) is None


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key.lower() == name:
            return str(value.decode("latin-1"))
    return ""
