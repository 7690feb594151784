"""Real HTTP servers on loopback, in a thread, and a way to drive an ASGI app by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Handler = Callable[[str], Awaitable[Any]]


@contextlib.contextmanager
def served(app: ASGIApp, **options: Any) -> Iterator[int]:
    """Serve `app` on loopback; the port."""
    options = {"log_level": "critical", "lifespan": "off", **options}
    config = uvicorn.Config(app, host="127.0.0.1", port=0, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the test server did not start"
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(5)


def http_scope(path: str = "/v1/chat/completions", method: str = "POST", **extra: Any) -> Scope:
    """A request's ASGI scope."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        **extra,
    }


def body_scope(path: str = "/v1/chat/completions", **headers: str) -> Scope:
    """The scope of a request with a body of unknown length, and other headers."""
    named = {"transfer_encoding": "chunked", "content_type": "application/json", **headers}
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return http_scope(path, headers=encoded)


class Client:
    """The other end of one ASGI request: what it sends, and what came back, in order."""

    def __init__(self, *bodies: bytes) -> None:
        last = len(bodies) - 1
        self._messages: list[Message] = [
            {"type": "http.request", "body": body, "more_body": index < last}
            for index, body in enumerate(bodies or (b"",))
        ]
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.Event().wait()  # a client that stays connected and silent
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent[1:])

    @property
    def headers(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.sent[0]["headers"]}

    @property
    def message(self) -> str:
        """What the error says."""
        return str(json.loads(self.body)["error"]["message"])


def answering(status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> ASGIApp:
    """An app that reads the request and gives one answer."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app


def through(app: ASGIApp, client: Client | None = None, scope: Scope | None = None) -> Client:
    """One request through `app`, start to end."""
    client = client or Client()
    asyncio.run(app(scope or http_scope(), client.receive, client.send))  # type: ignore[arg-type]
    return client
