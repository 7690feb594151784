"""The end of a server's socket: who was accepted is answered, who comes later is refused."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import uvicorn
import uvloop

from metok_vllm.server.api.leaving import LAST_REQUEST_S, _leave, leave_socket
from metok_vllm.server.middleware.lifecycle import Lifecycle, drain_before
from tests.server.http_servers import answering
from tests.waiting import wait_until

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Running:
    """A uvicorn server whose loop and server object are at hand."""

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


def test_a_connection_that_was_accepted_is_answered_and_no_other() -> None:
    with Running() as running, running.connect() as fresh, running.connect() as idle:
        idle.sendall(REQUEST)
        assert b"200 OK" in read_answer(idle)
        leaving = threading.Thread(
            target=leave_socket, args=(SimpleNamespace(server=running.server), running.loop)
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


def test_a_connection_that_waits_to_be_accepted_is_answered() -> None:
    """The system takes connections while the loop is busy, and resets them with the socket."""
    connected = threading.Event()

    async def busy_and_then_leaving(server: uvicorn.Server) -> None:
        assert connected.wait(5), "blocks the loop until the client is there"
        await _leave(server)

    with Running() as running:
        leaving = asyncio.run_coroutine_threadsafe(
            busy_and_then_leaving(running.server), running.loop
        )
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as waiting:
            waiting.sendall(REQUEST)
            connected.set()
            assert b"200 OK" in read_answer(waiting)
        leaving.result(5)


def test_a_server_that_never_came_up_has_nothing_to_leave() -> None:
    leave_socket(SimpleNamespace(), asyncio.new_event_loop())


def test_the_socket_is_left_after_the_engine_once() -> None:
    order: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.after_serving = lambda: order.append("socket")
    shutdown = drain_before(lambda **_: order.append("engine"), lifecycle, 0.0, lambda: None)
    shutdown(timeout=1.0)
    shutdown(timeout=1.0)
    assert order == ["engine", "socket", "engine"]


def test_a_dead_engine_leaves_the_socket_to_uvicorn() -> None:
    """Then vLLM calls from the event loop, which must not wait for itself."""
    order: list[str] = []
    lifecycle = Lifecycle()
    lifecycle.after_serving = lambda: order.append("socket")
    shutdown = drain_before(lambda **_: order.append("engine"), lifecycle, 0.0, lambda: None)

    async def in_loop() -> None:
        shutdown(timeout=1.0)

    asyncio.run(in_loop())
    assert order == ["engine"]
