from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware import body
from metok_vllm.server.middleware.body import BodyReader
from tests.server.http_servers import (
    Client,
    answering,
    body_scope,
    http_scope,
    served,
    through,
)


def echo() -> ASGIApp:
    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message["body"], message["more_body"]
        await answering(200, content)(_scope, Client().receive, send)

    return app


async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("called")


def test_a_body_at_the_limit_passes_in_its_pieces() -> None:
    client = through(BodyReader(echo(), 10), Client(b"12345", b"67890"), body_scope())
    assert (client.status, client.body) == (200, b"1234567890")


def test_one_byte_more_is_refused_while_it_arrives() -> None:
    client = Client(b"12345", b"678901", b"never")
    through(BodyReader(never, 10), client, body_scope())
    assert client.status == 413
    assert "10 bytes" in client.message
    assert len(client._messages) == 1


def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    client = Client(b"x")
    through(BodyReader(never, 10), client, http_scope(headers=[(b"content-length", b"11")]))
    assert client.status == 413
    assert len(client._messages) == 1


def test_a_request_without_a_body_passes_at_once() -> None:
    assert through(BodyReader(answering(200, b"ok"), 10, seconds=0.1)).status == 200


def test_a_late_body_is_408_and_closes() -> None:
    class Slow(Client):
        async def receive(self) -> Message:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b" ", "more_body": True}

    client = through(BodyReader(never, 1000, seconds=0.1), Slow(), body_scope())
    assert client.status == 408
    assert client.headers["connection"] == "close"
    assert "0.1 seconds" in client.message


def test_a_disconnect_during_upload_is_not_answered() -> None:
    class Leaving(Client):
        async def receive(self) -> Message:
            return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    client = Leaving(b"{")
    client._messages[0]["more_body"] = True
    assert through(BodyReader(never, 100), client, body_scope()).sent == []


def test_the_bytes_of_all_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "SMALL_BODY", 3)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        if (await receive())["body"] == b'"held"':
            inside.set()
            await leave.wait()

    async def main() -> None:
        reader = BodyReader(app, 100, total=9)
        first, second, small = Client(b'"held"'), Client(b'"more"'), Client(b'"s"')
        task = asyncio.ensure_future(reader(body_scope(), first.receive, first.send))
        await inside.wait()
        await reader(body_scope(), second.receive, second.send)
        assert second.status == 503
        assert int(second.headers["retry-after"]) >= 1
        # A short question still is answered.
        await reader(body_scope(), small.receive, small.send)
        assert small.sent == []
        leave.set()
        await task
        assert reader.held == 0
        third = Client(b'"more"')
        await reader(body_scope(), third.receive, third.send)
        assert third.sent == []
        assert reader.held == 0

    asyncio.run(main())


def test_text_has_a_limit_of_its_own() -> None:
    limited = BodyReader(answering(200, b"ok"), 10_000_000, max_text=1000)
    video = json.dumps({"url": "data:video/mp4;base64," + "A" * 200_000}).encode()
    text = json.dumps({"text": "A" * 200_000}).encode()
    # The first 64 KiB of any string count as text.
    roomy = BodyReader(answering(200, b"ok"), 10_000_000, max_text=70_000)
    assert through(roomy, Client(video), body_scope()).status == 200
    assert through(roomy, Client(text), body_scope()).status == 413
    assert "--metok-max-text-bytes" in through(limited, Client(text), body_scope()).message


def test_a_form_is_not_read_as_json() -> None:
    form = {"content_type": "multipart/form-data; boundary=x"}
    upload = b"[" * 5000
    reader = BodyReader(answering(200, b"ok"), 10_000)
    audio = body_scope("/v1/audio/transcriptions", **form)
    assert through(reader, Client(upload), audio).status == 200
    # Elsewhere there are no forms, so that word is no way around.
    assert through(reader, Client(upload), body_scope(**form)).status == 400


@pytest.mark.parametrize("chunked", [True, False])
def test_over_a_real_connection(chunked: bool) -> None:
    with served(BodyReader(answering(200, b"ok"), 100_000)) as port:
        pieces = (b"x" * 10_000 for _ in range(50))
        content: Iterator[bytes] | bytes = pieces if chunked else b"".join(pieces)
        status, answer = _post(port, content, chunked)
        assert status == 413
        assert json.loads(answer)["error"]["code"] == 413
        assert _post(port, b"small", False) == (200, b"ok")


def _post(port: int, content: Iterator[bytes] | bytes, chunked: bool) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", content, encode_chunked=chunked)
        response = connection.getresponse()
        return response.status, response.read()


def test_a_slow_body_is_408_and_closed() -> None:
    with (
        served(BodyReader(never, 1000, seconds=0.3)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
        started = time.monotonic()
        answer = b""
        while piece := client.recv(1000):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 5
