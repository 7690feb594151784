from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from metok_vllm.server.api.loading import LoadingResponder
from tests.server.http_servers import answering


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


def test_a_connection_whose_request_comes_late_is_still_answered(sock: socket.socket) -> None:
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
