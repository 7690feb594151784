"""The listening socket: 503 while loading, and no connection is reset at the end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import uvicorn
import uvloop

from metok_vllm.server.api.sockets import LAST_REQUEST_S, LoadingResponder, _close, close_socket
from metok_vllm.server.middleware.lifecycle import Lifecycle, drain_before
from tests.server.http_servers import answering
from tests.waiting import wait_until


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def get(sock: socket.socket, path: str = "/health/ready") -> tuple[int, bytes]:
    host, port = sock.getsockname()
    connection = http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def started(sock: socket.socket) -> LoadingResponder:
    responder = LoadingResponder(sock)
    responder.start()
    return responder


@pytest.mark.parametrize("path", ["/health/ready", "/health", "/v1/models"])
def test_everything_is_503_while_loading(sock: socket.socket, path: str) -> None:
    responder = started(sock)
    try:
        status, body = get(sock, path)
    finally:
        responder.stop()
    assert status == 503
    assert "loading" in json.loads(body)["error"]["message"]


def test_no_connection_is_lost_in_the_hand_over(sock: socket.socket) -> None:
    responder = started(sock)
    statuses: list[int] = []
    errors: list[Exception] = []
    done = threading.Event()

    def poll() -> None:
        while not done.is_set():
            try:
                statuses.append(get(sock)[0])
            except Exception as error:
                errors.append(error)

    pollers = [threading.Thread(target=poll) for _ in range(3)]
    for poller in pollers:
        poller.start()
    while 503 not in statuses:
        time.sleep(0.01)
    responder.stop()
    config = uvicorn.Config(answering(200, b"ok"), lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while statuses.count(200) < 20:
        time.sleep(0.01)
        assert thread.is_alive()
    done.set()
    for poller in pollers:
        poller.join()
    server.should_exit = True
    thread.join(5)
    assert errors == []
    assert set(statuses) == {503, 200}


def test_a_late_request_of_an_accepted_connection_is_answered(sock: socket.socket) -> None:
    responder = started(sock)
    get(sock)
    with socket.create_connection(sock.getsockname(), timeout=10) as late:
        time.sleep(0.2)  # accepted by now
        stopping = threading.Thread(target=responder.stop)
        stopping.start()
        time.sleep(0.2)
        late.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert late.recv(100).startswith(b"HTTP/1.1 503")
        stopping.join()


def test_stop_is_idempotent_and_safe_before_start(sock: socket.socket) -> None:
    responder = LoadingResponder(sock)
    responder.stop()
    responder = started(sock)
    responder.stop()
    responder.stop()


REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Running:
    """A running uvicorn server, with its loop and server object."""

    def __init__(self) -> None:
        config = uvicorn.Config(answering(200, b"ok"), port=0, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(
            target=lambda: self.loop.run_until_complete(self.server.serve()), daemon=True
        )

    def __enter__(self) -> Running:
        self.thread.start()
        wait_until(lambda: self.server.started, 5)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(5)

    def connect(self) -> socket.socket:
        known = len(self.server.server_state.connections)
        client = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        wait_until(lambda: len(self.server.server_state.connections) > known, 5)
        return client


def read_answer(client: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"0\r\n\r\n"):
        part = client.recv(4096)
        assert part, answer
        answer += part
    return answer


def test_accepted_connections_are_answered_and_new_ones_refused() -> None:
    with Running() as running, running.connect() as fresh, running.connect() as idle:
        idle.sendall(REQUEST)
        assert b"200 OK" in read_answer(idle)
        leaving = threading.Thread(
            target=close_socket, args=(SimpleNamespace(server=running.server), running.loop)
        )
        leaving.start()
        time.sleep(LAST_REQUEST_S / 4)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port), timeout=5)
        fresh.sendall(REQUEST)
        assert b"200 OK" in read_answer(fresh)
        leaving.join(5)
        assert idle.recv(4096) == b""
        assert fresh.recv(4096) == b""


def test_a_connection_in_the_accept_queue_is_answered() -> None:
    """The kernel accepts connections for a busy loop, and resets them when the socket closes."""
    connected = threading.Event()

    async def busy_and_then_leaving(server: uvicorn.Server) -> None:
        assert connected.wait(5), "blocks the loop until the client is there"
        await _close(server)

    with Running() as running:
        leaving = asyncio.run_coroutine_threadsafe(
            busy_and_then_leaving(running.server), running.loop
        )
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as waiting:
            waiting.sendall(REQUEST)
            connected.set()
            assert b"200 OK" in read_answer(waiting)
        leaving.result(5)


def test_closing_without_a_server_does_nothing() -> None:
    close_socket(SimpleNamespace(), asyncio.new_event_loop())


def test_the_socket_is_closed_once_after_the_engine() -> None:
    order: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.after_serving = lambda: order.append("socket")
    shutdown = drain_before(lambda **_: order.append("engine"), lifecycle, 0.0, lambda: None)
    shutdown(timeout=1.0)
    shutdown(timeout=1.0)
    assert order == ["engine", "socket", "engine"]


def test_after_a_dead_engine_uvicorn_closes_the_socket() -> None:
    """vLLM then calls it from the event loop, which must not be blocked."""
    order: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.after_serving = lambda: order.append("socket")
    shutdown = drain_before(lambda **_: order.append("engine"), lifecycle, 0.0, lambda: None)

    async def in_loop() -> None:
        shutdown(timeout=1.0)

    asyncio.run(in_loop())
    assert order == ["engine"]
