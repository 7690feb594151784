"""Hundreds of clients that send, read or leave badly: a good client is answered all the while.

They use another API key. Five seconds after they disconnect, nothing of theirs runs.
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import psutil
import pytest

from metok_vllm.benchmarks.client.videos import Clip, video_bytes
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import CHAT, as_url
from tests.faults.servers import chat, client, decoders, requests_running, running
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]

GOOD, HOSTILE = "a-good-key", "a-hostile-key"
MANY, LEAVING = 256, 50
ANSWERED_S = GONE_S = 10.0
WATCHED_S = 12.0
IDLE_PERCENT = 30.0


class DrippingHost(http.server.BaseHTTPRequestHandler):
    """A media host that sends a byte now and then; `sending` counts its open responses."""

    sending = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        with self.lock:
            DrippingHost.sending += 1
        with suppress(OSError):
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b"\0")
                self.wfile.flush()
                time.sleep(0.2)
        with self.lock:
            DrippingHost.sending -= 1

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def media_host() -> Iterator[str]:
    host = http.server.ThreadingHTTPServer(("127.0.0.1", 0), DrippingHost)
    host.daemon_threads = True
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{host.server_port}"
    host.shutdown()


@pytest.fixture(scope="module")
def server(media_host: str) -> Iterator[ChildServer]:
    keys = ("--api-key", GOOD, HOSTILE)
    with running(*keys, "--metok-media-allow-private-hosts", media_host) as server:
        yield server


@pytest.fixture
def good(server: ChildServer) -> Iterator[httpx.Client]:
    with client(server, GOOD) as good:
        yield good


def request(server: ChildServer, body: bytes, length: int | None = None) -> bytes:
    """A request as bytes; `length` is its content-length, by default the true one."""
    url = httpx.URL(server.url)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {HOSTILE}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def connected(
    server: ChildServer, sent: Callable[[int], bytes], count: int
) -> Iterator[list[socket.socket]]:
    """Clients that send something, then do nothing, then close the connection."""
    url = httpx.URL(server.url)
    sockets: list[socket.socket] = []
    try:
        for number in range(count):
            connection = socket.socket()
            sockets.append(connection)
            # Small, so that an unread answer soon fills it.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(30)
            connection.connect((url.host, url.port))
            with suppress(ConnectionError):  # refused before all of it was sent
                connection.sendall(sent(number))
        yield sockets
    finally:
        for connection in sockets:
            connection.close()


def answered(good: httpx.Client, seconds: float) -> None:
    """Good requests are answered, each within ANSWERED_S, for `seconds`."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        began = time.monotonic()
        response = good.post(CHAT, json=chat(f"Number {number}?"))
        took = time.monotonic() - began
        assert response.status_code == 200, response.text
        assert took < ANSWERED_S
        time.sleep(0.2)


def nothing_left(server: ChildServer, good: httpx.Client) -> None:
    """No bad client's request is in the engine, no connection open, no decoder busy."""
    wait_until(lambda: requests_running(good) == 0, GONE_S)
    wait_until(lambda: open_connections(server) <= 2, GONE_S)
    busy = sum(_percent(process) for process in decoders(server))
    assert busy < IDLE_PERCENT
    assert good.post(CHAT, json=chat("And now?")).status_code == 200


def open_connections(server: ChildServer) -> int:
    port = httpx.URL(server.url).port
    found = psutil.Process(server.process.pid).net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port for c in found)


def _percent(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        return float(process.cpu_percent(0.5))
    return 0.0


def test_bodies_that_are_never_finished(server: ChildServer, good: httpx.Client) -> None:
    with connected(server, lambda _: request(server, b"{", 100_000), MANY):
        answered(good, WATCHED_S)
    nothing_left(server, good)


def test_headers_that_are_never_finished(server: ChildServer, good: httpx.Client) -> None:
    with connected(server, lambda _: request(server, b"")[:40], MANY):
        answered(good, WATCHED_S)
    nothing_left(server, good)


def test_answers_that_are_never_read(server: ChildServer, good: httpx.Client) -> None:
    body = json.dumps(chat("Go on", tokens=15_000, stream=True)).encode()
    with connected(server, lambda _: request(server, body), MANY):
        answered(good, WATCHED_S)
    nothing_left(server, good)


def leave_after(seconds: float, server: ChildServer, sent: Callable[[int], bytes]) -> None:
    with connected(server, sent, LEAVING):
        time.sleep(seconds)


def about(part: dict[str, Any], number: int, **more: Any) -> bytes:
    return json.dumps(chat(f"Which of {number}?", part, **more)).encode()


def test_leaving_while_a_video_is_fetched(
    server: ChildServer, good: httpx.Client, media_host: str
) -> None:
    url = f"http://{media_host}/film.mp4"
    part = {"type": "video_url", "video_url": {"url": url}}
    with connected(server, lambda n: request(server, about(part, n)), LEAVING):
        wait_until(lambda: DrippingHost.sending > 0, GONE_S)
        answered(good, 3)
    wait_until(lambda: DrippingHost.sending == 0, GONE_S)
    nothing_left(server, good)


def long_video() -> str:
    return as_url(video_bytes(Clip("cuts", (1,), 2400, 8, 640, 480)))


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_leaving_while_videos_are_decoded(
    server: ChildServer, good: httpx.Client, seconds: float
) -> None:
    part = {"type": "video_url", "video_url": {"url": long_video()}}
    leave_after(seconds, server, lambda n: request(server, about(part, n)))
    answered(good, 3)
    nothing_left(server, good)


def test_leaving_during_the_prefill(server: ChildServer, good: httpx.Client) -> None:
    def sent(number: int) -> bytes:
        clip = video_bytes(Clip("cuts", (number,), 64, 8, 96, 64))
        part = {"type": "video_url", "video_url": {"url": as_url(clip)}}
        more = {"media_io_kwargs": {"video": {"num_frames": 64}}, "metok": {"enabled": False}}
        return request(server, about(part, number, **more))

    with connected(server, sent, LEAVING):
        wait_until(lambda: requests_running(good) > 0, 30)
    answered(good, 3)
    nothing_left(server, good)


def test_leaving_while_tokens_are_decoded(server: ChildServer, good: httpx.Client) -> None:
    body = json.dumps(chat("Go on", tokens=15_000, stream=True)).encode()
    with connected(server, lambda _: request(server, body), LEAVING) as sockets:
        for connection in sockets:
            assert connection.recv(10)
        assert requests_running(good) > 0
        answered(good, 3)
    nothing_left(server, good)
