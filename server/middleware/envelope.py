"""Errors as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}`.

vLLM answers some errors in other forms: a bare string for a wrong key, FastAPI's `detail` for an
unknown path, no body from `/health`. `ErrorEnvelope` is the outermost middleware: it rewrites
those to envelopes and keeps internals out of a 500.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("vllm.metok")

MAX_ERROR_BODY = 1 << 20
# Characters of a message, and of a client's value that is quoted in it.
MAX_MESSAGE = 1000
MAX_QUOTED = 200
MAX_PARAM = 100
RETRY_AFTER_S = 2
ENGINE_DEAD = "The engine has stopped. The server must be started again."

MESSAGES = {
    400: "The request is malformed.",
    401: "The API key is missing or wrong. Send it as 'Authorization: Bearer <key>'.",
    403: "This request is not allowed.",
    404: "There is nothing at this path. The API is below /v1, its description at /docs.",
    405: "This path does not accept that method.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    415: "The body must be JSON, with 'Content-Type: application/json'.",
    422: "The request cannot be processed.",
    429: "Too many requests. Try again later.",
    500: "Internal error. The server's log has the details.",
    503: "The server cannot answer now. Try again later.",
    504: "The request took too long.",
}

# Long words, and long texts between quotation marks of one kind.
_LONG_PIECES = [
    re.compile(pattern % (MAX_QUOTED + 1))
    for pattern in (r"\S{%d,}", r"(?<!\w)'[^']{%d,}'?", r'"[^"]{%d,}"?', r"`[^`]{%d,}`?")
]


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """The envelope as JSON. An empty message is replaced by one that fits the status."""
    message = short(message.strip()) or default_message(status)
    param = param and cut(param, MAX_PARAM)
    error = {"message": message, "type": _phrase(status), "param": param, "code": status}
    return json.dumps({"error": error}).encode()


def short(text: str) -> str:
    """A message cut to MAX_MESSAGE characters, and each quotation in it to MAX_QUOTED."""
    for quoted in _LONG_PIECES:
        # The text after this slice would be cut anyway.
        text = quoted.sub(lambda piece: cut(piece[0], MAX_QUOTED), text[: 8 * MAX_MESSAGE])
    return cut(text, MAX_MESSAGE)


def cut(text: str, length: int) -> str:
    """`text`, or its beginning and its last characters where it is longer than `length`."""
    if len(text) <= length:
        return text
    tail = length // 10
    return f"{text[: length - tail - 1]}…{text[len(text) - tail :]}"


def error_response(status: int, message: str, param: str | None = None) -> Response:
    """The envelope as a response."""
    content = error_body(status, message, param)
    return Response(content, status_code=status, media_type="application/json")


def default_message(status: int) -> str:
    """A message for a status alone."""
    return MESSAGES.get(status) or f"{_phrase(status)}."


async def send_error(
    send: Send,
    status: int,
    message: str = "",
    *,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answer a request with an envelope."""
    body = error_body(status, message)
    await send(_start(status, body, headers or {}))
    await send({"type": "http.response.body", "body": body})


class ErrorEnvelope:
    """ASGI middleware: every error response becomes an envelope with a message.

    A client that disconnects before the answer is not logged as an error.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        rewriter = _Rewriter(send)
        try:
            await self.app(scope, receive, rewriter.send)
        except ClientDisconnect:
            logger.info("A client disconnected before its request was complete.")
        except Exception:
            if rewriter.sent:
                raise
            logger.exception("Unhandled error while answering %s", scope["path"])
            await send_error(send, 500)


class _Rewriter:
    """Passes successful responses through unchanged, and rewrites errors once they are complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._body = bytearray()
        self.sent = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._held = message
            return
        if self._held is None:
            self.sent = True
            await self._send(message)
            return
        if len(self._body) < MAX_ERROR_BODY:
            self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._finish(self._held)

    async def _finish(self, start: Message) -> None:
        self.sent = True
        status, body = start["status"], bytes(self._body)
        body = shortened(body) if is_envelope(body) else error_body(status, "")
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in start["headers"]}
        if status in (429, 503):
            headers.setdefault("retry-after", str(RETRY_AFTER_S))
        if status == 401:
            headers.setdefault("www-authenticate", "Bearer")
        await self._send(_start(status, body, headers))
        await self._send({"type": "http.response.body", "body": body})


def is_envelope(body: bytes) -> bool:
    """Whether `body` is an OpenAI error with a message in it."""
    try:
        content: Any = json.loads(body)
    except ValueError:
        return False
    error = content.get("error") if isinstance(content, dict) else None
    return isinstance(error, dict) and bool(str(error.get("message") or "").strip())


def shortened(body: bytes) -> bytes:
    """The envelope with its texts cut; the same bytes where nothing is too long."""
    if len(body) <= MAX_QUOTED:
        return body
    content = json.loads(body)
    error = content["error"]
    for name, value in error.items():
        if isinstance(value, str):
            error[name] = short(value) if name == "message" else cut(value, MAX_PARAM)
    return json.dumps(content).encode()


def _start(status: int, body: bytes, headers: Mapping[str, str]) -> Message:
    full = {**headers, "content-type": "application/json", "content-length": str(len(body))}
    encoded = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in full.items()]
    return {"type": "http.response.start", "status": status, "headers": encoded}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
