"""Hostile media hosts: every response ends as a 4xx or as a 504, in time."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from dataclasses import replace

import pytest

from metok_vllm.errors import (
    MediaBusyError,
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
)
from metok_vllm.server.media.fetch import Fetcher, parse_url
from metok_vllm.server.media.fetch_budget import BUDGET
from metok_vllm.server.media.video_files import all_of
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import REQUESTER, Requester
from tests.server.media.raw_hosts import Script, raw_host, sending, sending_for_ever
from tests.waiting import wait_until

LIMITS = MediaLimits(max_bytes=300_000, fetch_timeout_s=1.0, allow_private_hosts=True)
OK = b"HTTP/1.1 200 OK\r\n"


def fetch(url: str, limits: MediaLimits = LIMITS) -> bytes:
    return all_of(asyncio.run(Fetcher(limits).fetch(url)))


def refusal(script: Script, limits: MediaLimits = LIMITS) -> MediaError:
    with raw_host(script) as host, pytest.raises(MediaError) as caught:
        fetch(f"http://127.0.0.1:{host.port}/video", limits)
    assert str(host.port) not in str(caught.value)
    assert len(str(caught.value)) < 200
    return caught.value


LOCATIONS = [
    b"http:\\\\127.0.0.1/",
    b"javascript:alert(1)",
    b"data:video/mp4;base64,AAAA",
    b"file:///etc/passwd",
    b"ftp://127.0.0.1/x",
    b"gopher://127.0.0.1/",
    b"//[::1",
    b"http://[::1:80/",
    b"http://127.0.0.1:99999/",
    b"http://127.0.0.1:0/",
    b"http://127.0.0.1:port/",
    b"http://127.0.0.1:-1/",
    b"http://",
    b"http:",
    b"http:///x",
    b"http://xn--/",
    b"http://xn--zzzzzzzzzz--/",
    b"http://" + b"a" * 300 + b"/",
    b"http://" + b"a." * 200 + b"/",
    b"http://..../",
    b"http://%00/",
    b"http://%zz/",
    b"http://a b/",
    b"http://\xff\xfe/",
    b"http://\xc3\xa9/",
    b"http://0x/",
    b"http://1.2.3.4.5/",
    b"?" * 90_000,
    b"\xff" * 100,
]


@pytest.mark.parametrize("location", LOCATIONS, ids=range(len(LOCATIONS)))
def test_redirect_to_an_invalid_location(location: bytes) -> None:
    head = b"HTTP/1.1 302 Found\r\nlocation: " + location + b"\r\ncontent-length: 0\r\n\r\n"
    error = refusal(sending(head))
    assert error.status in (400, 422)


ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "binary": bytes(range(256)) * 20,
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18,
    "no reason": b"HTTP/1.1 999\r\n\r\n",
    "negative status": b"HTTP/1.1 -20 OK\r\n\r\n",
    "control characters": OK + b"x: \x00\x01\x02\r\n\r\nbody",
    "location with a line break": b"HTTP/1.1 302 F\r\nlocation: http://a\rb/\r\n\r\n",
    "header without a name": OK + b": x\r\n\r\nbody",
    "header without a colon": OK + b"x\r\n\r\nbody",
    "lengths that differ": OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "length no number": OK + b"content-length: many\r\n\r\nabcd",
    "negative length": OK + b"content-length: -1\r\n\r\nabcd",
    "length of 5,000 digits": OK + b"content-length: " + b"9" * 5000 + b"\r\n\r\nabcd",
    "length in other digits": OK + "content-length: ²\r\n\r\nabcd".encode("latin-1"),
    "body too short": OK + b"content-length: 1000\r\n\r\nabcd",
    "chunked garbage": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nabcd\r\n",
    "chunk without an end": OK + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
    "chunk of 16 EB": OK + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
    "chunk longer than said": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n",
    "another encoding": OK + b"transfer-encoding: gzip\r\n\r\nabcd",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nabcd",
    "not modified": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "part of it": b"HTTP/1.1 206 Partial\r\ncontent-length: 2\r\n\r\nab",
    "redirect without a place": b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
    "a header of 10 MB": OK + b"x: " + b"y" * 10_000_000 + b"\r\n\r\nabcd",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_invalid_http_responses(kind: str) -> None:
    error = refusal(sending(ANSWERS[kind]))
    assert error.status in (400, 413, 422)


ENDLESS: dict[str, tuple[bytes, bytes]] = {
    "headers": (OK, b"x-more: " + b"y" * 1000 + b"\r\n"),
    "one header": (OK + b"x: ", b"y" * 1000),
    "short headers": (OK, b"x:y\r\n"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "status line": (b"HTTP/1.1 200 ", b"O" * 1000),
    "body": (OK + b"\r\n", b"y" * 10_000),
    "body in tiny chunks": (
        OK + b"transfer-encoding: chunked\r\n\r\n",
        b"1\r\na\r\n" * 1000,
    ),
    "chunk extensions": (OK + b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 1000),
    "trailers": (OK + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"x: y\r\n" * 100),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_endless_responses(kind: str) -> None:
    started = time.monotonic()
    with raw_host(sending_for_ever(*ENDLESS[kind])) as host:
        with pytest.raises(MediaError) as caught:
            fetch(f"http://127.0.0.1:{host.port}/")
        wait_until(host.closed.is_set, 15)
    assert caught.value.status in (413, 422, 504)
    assert time.monotonic() - started < 15


def test_fetches_run_in_their_own_loop() -> None:
    """Parsing a response blocks its loop for each 64 KiB."""
    threads: list[str] = []

    async def resolver(_host: str, _port: int) -> list[str]:
        threads.append(threading.current_thread().name)
        return ["127.0.0.1"]

    async def two(url: str) -> None:
        both = (Fetcher(LIMITS, resolver=resolver).fetch(url) for _ in range(2))
        for file in await asyncio.gather(*both):
            file.close()

    with raw_host(sending(OK + b"content-length: 2\r\n\r\nok")) as host:
        for _ in range(2):  # loops of callers come and go
            asyncio.run(two(f"http://127.0.0.1:{host.port}/"))
    assert threads == ["metok-fetch"] * 4


def test_a_body_that_drips_is_given_up_at_the_deadline() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(OK + b"content-length: 1000\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.1)

    started = time.monotonic()
    assert isinstance(refusal(drip), MediaDeadlineError)
    assert time.monotonic() - started < 8


def test_a_host_that_never_answers() -> None:
    assert isinstance(refusal(lambda _: time.sleep(3)), MediaDeadlineError)


def test_a_plain_answer_to_tls_is_422() -> None:
    script = sending(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with raw_host(script) as host, pytest.raises(MediaError) as caught:
        fetch(f"https://127.0.0.1:{host.port}/")
    assert caught.value.status == 422


@pytest.mark.parametrize("body", [gzip.compress(b"x" * 1_000_000), b"no gzip at all"])
def test_a_declared_encoding_is_not_decoded(body: bytes) -> None:
    head = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    with raw_host(sending(head, body)) as host:
        assert fetch(f"http://127.0.0.1:{host.port}/") == body


def test_interim_responses_and_many_chunks_are_accepted() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3
    chunks = b"".join(b"400\r\n" + b"z" * 1024 + b"\r\n" for _ in range(100))
    script = sending(hints, OK, b"transfer-encoding: chunked\r\n\r\n", chunks, b"0\r\n\r\n")
    with raw_host(script) as host:
        assert fetch(f"http://127.0.0.1:{host.port}/") == b"z" * 102_400


def test_cancelling_a_request_ends_its_fetch() -> None:
    async def leave(url: str) -> None:
        task = asyncio.create_task(Fetcher(replace(LIMITS, fetch_timeout_s=60)).fetch(url))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def slowly(connection: socket.socket) -> None:
        connection.sendall(OK + b"content-length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    with raw_host(slowly) as host:
        asyncio.run(leave(f"http://127.0.0.1:{host.port}/"))
        wait_until(host.closed.is_set, 2)
    wait_until(lambda: not BUDGET._fetches, 2)


def test_the_largest_fetch_ends_over_the_byte_limit() -> None:
    """Stalled fetches of one client do not block another client."""
    limits = replace(LIMITS, max_fetched_bytes=500_000, fetch_timeout_s=20)

    def stalled(connection: socket.socket) -> None:
        connection.sendall(OK + b"content-length: 250000\r\n\r\n" + b"x" * 240_000)
        while connection.recv(1):
            pass
        raise OSError

    async def both(greedy: str, small: str) -> tuple[list[object], bytes]:
        REQUESTER.set(Requester("greedy"))
        tasks = [asyncio.create_task(Fetcher(limits).fetch(greedy)) for _ in range(2)]
        while sum(held.num_bytes for held in BUDGET._fetches) < 480_000:
            await asyncio.sleep(0.01)
        REQUESTER.set(Requester("modest"))
        body = all_of(await Fetcher(limits).fetch(small))
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        return [task.exception() for task in ended], body

    whole = sending(OK + b"content-length: 100000\r\n\r\n", b"y" * 100_000)
    with raw_host(stalled) as greedy, raw_host(whole) as small:
        urls = (f"http://127.0.0.1:{host.port}/" for host in (greedy, small))
        failures, body = asyncio.run(both(*urls))
    assert body == b"y" * 100_000
    (failure,) = failures
    assert isinstance(failure, MediaBusyError)
    assert failure.status == 429


def test_a_single_fetch_over_the_byte_limit_is_429() -> None:
    limits = replace(LIMITS, max_fetched_bytes=1000)
    error = refusal(sending(OK + b"content-length: 2000\r\n\r\n", b"x" * 2000), limits)
    assert isinstance(error, MediaBusyError)


@pytest.mark.parametrize("size", [300_000, 300_001])
def test_the_limit_is_exact(size: int) -> None:
    script = sending(OK + b"\r\n", b"x" * size)
    if size > LIMITS.max_bytes:
        assert isinstance(refusal(script), MediaTooLargeError)
        return
    with raw_host(script) as host:
        assert len(fetch(f"http://127.0.0.1:{host.port}/")) == size


@pytest.mark.parametrize("url", ["http://h:0/", "http://h:65536/", "http://xn--/", "http://h:/x"])
def test_ports_and_names_that_do_not_exist(url: str) -> None:
    if url == "http://h:/x":
        assert parse_url(url).port is None
        return
    with pytest.raises(MediaForbiddenError):
        parse_url(url)
