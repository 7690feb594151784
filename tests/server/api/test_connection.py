from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS, Config

from metok_vllm.server.api import connection
from metok_vllm.server.api.connection import connection_class, register
from metok_vllm.server.settings import ServerSettings
from tests.server.http_servers import answering, served

QUICK = ServerSettings(header_timeout_s=0.4, write_timeout_s=0.4)
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    with served(answering(200, b"ok"), http=connection_class(QUICK)) as port:
        yield port


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    content = b""
    while piece := client.recv(65536):
        content += piece
    return content


def is_disconnected(client: socket.socket, piece: bytes, pause_s: float) -> bool:
    """Whether the server closes the connection within 8 s while the client sends."""
    deadline = time.monotonic() + 8
    try:
        while time.monotonic() < deadline:
            client.sendall(piece)
            time.sleep(pause_s)
    except OSError:
        return True
    return False


def test_half_a_header_is_408(port: int) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-")
        assert read_all(client).startswith(b"HTTP/1.1 408")


def test_headers_that_arrive_slowly_are_408(port: int) -> None:
    with connect(port) as client:
        assert is_disconnected(client, b"G", 0.1)


def test_a_connection_without_a_request_is_closed(port: int) -> None:
    with connect(port) as client:
        assert read_all(client) == b""


def test_an_incomplete_second_request_is_408(port: int) -> None:
    with connect(port) as client:
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        time.sleep(0.6)  # uvicorn closes idle connections after 5 s
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /")
        assert read_all(client).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("tail", [b"X-Long: ", b""])
def test_endless_headers_are_refused(port: int, tail: bytes) -> None:
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + tail)
        line = b"x" * 1000 if tail else b"X-A: b\r\n" * 100
        answer = b""
        try:
            for _ in range(300):
                client.sendall(line)
                time.sleep(0.0005)
            answer = read_all(client)
        except OSError:
            answer = answer or b"HTTP/1.1 431"  # hung up on while it was still sending
        assert answer.startswith(b"HTTP/1.1 431")


def test_trailers_without_end_are_refused() -> None:
    with (
        served(answering(200, b"ok"), http=connection_class(ServerSettings())) as port,
        connect(port) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        assert is_disconnected(client, b"X-A: b\r\n" * 100, 0.0005)


def test_sending_on_after_the_answer_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.4)

    async def refuse(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    with served(refuse, http=connection_class(QUICK)) as port, connect(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 401")
        assert is_disconnected(client, b"x", 0.05)


def test_a_whole_body_after_the_answer_keeps_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 0.3)

    async def early(scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    slow = ServerSettings(header_timeout_s=5)
    with served(early, http=connection_class(slow)) as port, connect(port) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab")
            assert client.recv(1000).startswith(b"HTTP/1.1 401")
            client.sendall(b"cd")
            time.sleep(0.5)


def stream(done: list[str], size: int, count: int = 10**6) -> ASGIApp:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            for _ in range(count):
                yield b"x" * size
                await asyncio.sleep(0)
        finally:
            done.append("over")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(pieces())(scope, receive, send)

    return app


def test_a_client_that_stops_reading_is_disconnected() -> None:
    done: list[str] = []
    with served(stream(done, 65536), http=connection_class(QUICK)) as port, connect(port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(REQUEST)
        deadline = time.monotonic() + 8
        while not done and time.monotonic() < deadline:
            time.sleep(0.05)
        assert done == ["over"]


def test_an_unread_complete_answer_is_disconnected() -> None:
    class Counted(connection_class(QUICK)):  # type: ignore[misc]
        lost = 0

        def connection_lost(self, exc: Exception | None) -> None:
            Counted.lost += 1
            super().connection_lost(exc)

    with (
        served(answering(200, b"x" * (16 << 20)), http=Counted) as port,
        connect(port) as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(REQUEST)
        deadline = time.monotonic() + 8
        while not Counted.lost and time.monotonic() < deadline:
            time.sleep(0.05)
        assert Counted.lost == 1


def test_a_slow_reader_gets_the_whole_answer() -> None:
    done: list[str] = []
    app = stream(done, 65536, 100)
    with served(app, http=connection_class(QUICK)) as port, connect(port) as client:
        client.sendall(REQUEST)
        content = b""
        started = time.monotonic()
        while b"0\r\n\r\n" not in content[-5:]:
            time.sleep(0.02 if time.monotonic() - started < 2 else 0)
            piece = client.recv(65536)
            assert piece, f"cut off after {len(content)} bytes"
            content += piece
        assert content.count(b"x") == 100 * 65536


def test_zero_means_no_time_limit() -> None:
    lasting = ServerSettings(header_timeout_s=0, write_timeout_s=0)
    with (
        served(answering(200, b"ok"), http=connection_class(lasting)) as port,
        connect(port) as client,
    ):
        client.sendall(REQUEST[:-2])
        time.sleep(0.6)
        client.sendall(REQUEST[-2:])
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_uvicorn_uses_it_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    register(QUICK)
    config = Config(answering(200, b"ok"))
    config.load()
    assert issubclass(config.http_protocol_class, connection.Connection)
    assert config.http_protocol_class.header_timeout_s == 0.4
