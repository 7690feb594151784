"""Requests in flight: limits, draining, deadlines, and clients that disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware import admission
from metok_vllm.server.middleware.access import TENANT
from metok_vllm.server.middleware.admission import Admission, Deadline, Refusal, requester_of
from metok_vllm.server.middleware.body import BodyReader
from metok_vllm.server.middleware.lifecycle import Lifecycle
from metok_vllm.video.requester import REQUESTER, current
from tests.server.http_servers import Client, answering, body_scope, http_scope, served, through
from tests.waiting import wait_until


@pytest.mark.parametrize("kind", [Refusal, Admission])
def test_beyond_the_limit_is_429_with_retry_after(kind: type[Refusal]) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter()
    app = kind(answering(200, b"ok"), lifecycle, max_inflight=1)
    client = through(app)
    assert client.status == 429
    assert int(client.headers["retry-after"]) >= 1
    assert client.message
    assert through(app, scope=http_scope("/ping")).status == 200
    lifecycle.leave()
    assert through(app).status == 200


@pytest.mark.parametrize("kind", [Refusal, Admission])
def test_one_client_gets_only_its_share(kind: type[Refusal]) -> None:
    lifecycle = Lifecycle()
    app = kind(answering(200, b"ok"), lifecycle, max_inflight=16)
    mine, other = http_scope(client=("10.0.0.1", 5)), http_scope(client=("10.0.0.2", 5))
    for _ in range(14):
        assert through(app, scope=mine).status == 200
        lifecycle.enter("10.0.0.1")
    refused = through(app, scope=mine)
    assert (refused.status, "yours" in refused.message) == (429, True)
    assert through(app, scope=other).status == 200
    with_a_key = {**mine, TENANT: "of another key"}
    assert through(app, scope=with_a_key).status == 200
    lifecycle.leave("10.0.0.1")
    assert through(app, scope=mine).status == 200


def test_clients_without_requests_are_dropped() -> None:
    lifecycle = Lifecycle()
    app = Admission(answering(200, b"ok"), lifecycle, max_inflight=16)
    for number in range(20):
        assert through(app, scope=http_scope(client=(f"10.0.0.{number}", 5))).status == 200
    assert (lifecycle.inflight, len(lifecycle._inflight)) == (0, 0)


def test_zero_means_no_limit() -> None:
    lifecycle = Lifecycle()
    for _ in range(5000):
        lifecycle.enter()
    assert through(Admission(answering(200, b"ok"), lifecycle, max_inflight=0)).status == 200


def test_a_failed_request_is_no_longer_counted() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        assert lifecycle.inflight == 1
        raise RuntimeError("failed")

    lifecycle = Lifecycle()
    with pytest.raises(RuntimeError, match="failed"):
        through(Admission(app, lifecycle, max_inflight=1))
    assert lifecycle.inflight == 0


@pytest.mark.parametrize("kind", [Refusal, Admission])
def test_draining_is_503_with_retry_after_for_generation_only(kind: type[Refusal]) -> None:
    lifecycle = Lifecycle()
    lifecycle.drain(0)
    app = kind(answering(200, b"ok"), lifecycle, max_inflight=9)
    client = through(app)
    assert client.status == 503
    assert int(client.headers["retry-after"]) >= 1
    assert through(app, scope=http_scope("/ping")).status == 200


def test_a_request_counts_once_its_body_is_there() -> None:
    lifecycle = Lifecycle()
    inside = asyncio.Event()

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        inside.set()
        await asyncio.Event().wait()

    class Half(Client):
        rest = asyncio.Event()

        async def receive(self) -> Message:
            if not self._messages:
                await self.rest.wait()
                return {"type": "http.request", "body": b"}", "more_body": False}
            return {**self._messages.pop(0), "more_body": True}

    async def main(whole: ASGIApp) -> None:
        client = Half(b"{")
        task = asyncio.ensure_future(whole(body_scope(), client.receive, client.send))
        await asyncio.sleep(0.05)
        assert lifecycle.inflight == 0
        client.rest.set()
        await inside.wait()
        assert lifecycle.inflight == 1
        task.cancel()
        await asyncio.wait({task})
        assert lifecycle.inflight == 0

    asyncio.run(main(BodyReader(Admission(app, lifecycle, max_inflight=1), 100)))


STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


def test_an_answer_before_the_deadline_is_unchanged() -> None:
    client = through(Deadline(answering(200, b"ok"), 5))
    assert (client.status, client.body) == (200, b"ok")


def test_the_deadline_is_504_and_the_app_sees_a_disconnect() -> None:
    disconnected: list[bool] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected.append(True)
        await answering(200, b"too late")(_scope, Client().receive, send)

    client = through(Deadline(app, 0.05))
    assert client.status == 504
    assert "0.05 seconds" in client.message
    assert disconnected == [True]
    assert b"too late" not in client.body


def test_a_stream_ends_with_an_error_event() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await asyncio.sleep(60)

    client = through(Deadline(_ended_by_disconnect(app), 0.05))
    events = client.body.decode().split("\n\n")
    assert events[0] == "data: {}"
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 504
    assert events[2] == "data: [DONE]"
    assert client.sent[-1].get("more_body", False) is False


def test_only_a_stream_gets_an_error_event() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        await asyncio.sleep(60)

    assert through(Deadline(_ended_by_disconnect(app), 0.05)).body == b"{"


def test_work_that_ignores_the_disconnect_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CANCEL_GRACE_S", 0.01)
    cancelled: list[bool] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert through(Deadline(app, 0.05)).status == 504
    assert cancelled == [True]


def test_an_error_of_the_app_is_passed_on() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        through(Deadline(app, 5))


def _ended_by_disconnect(app: ASGIApp) -> ASGIApp:
    # As starlette's StreamingResponse, which ends when the client disconnects.
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(app(scope, receive, send))
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    return wrapped


class Leaving(Client):
    """Sends its body and disconnects 50 ms later."""

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}


def test_a_route_that_does_not_receive_ends_on_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "CANCEL_GRACE_S", 0.05)
    finished: list[bool] = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        with current().on_finish(lambda: finished.append(True)):
            await asyncio.sleep(60)

    started = time.monotonic()
    assert through(Deadline(app, 0), Leaving()).sent == []
    assert finished == [True]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_the_requester_finishes_with_the_request(seconds: float) -> None:
    requesters = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        requester = REQUESTER.get()
        assert requester is not None
        assert not requester.finished
        requesters.append(requester)
        if seconds:
            await asyncio.sleep(60)
        await answering(200, b"ok")(_scope, Client().receive, send)

    through(Deadline(_ended_by_disconnect(app) if seconds else app, seconds))
    assert [requester.finished for requester in requesters] == [True]
    assert REQUESTER.get() is None


def test_the_requester_of_a_scope() -> None:
    anonymous = requester_of(http_scope(client=("192.0.2.7", 4711)))
    assert (anonymous.client, anonymous.tenant) == ("192.0.2.7", "")
    with_key = requester_of(http_scope(client=("192.0.2.7", 4711), **{TENANT: "abc"}))
    assert (with_key.client, with_key.tenant) == ("abc", "abc")
    assert requester_of(http_scope(client=None)).client == ""


def endless(closed: Callable[[], None]) -> ASGIApp:
    """An endless stream of large chunks; calls `closed` at its end."""

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
                await asyncio.sleep(0)
        finally:
            closed()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)

    return app


@contextlib.contextmanager
def silent(port: int) -> Iterator[socket.socket]:
    """A client that sends a request and does not read the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        yield client


def test_a_client_that_reads_nothing_is_disconnected_at_the_deadline() -> None:
    lifecycle = Lifecycle()
    closed: list[bool] = []
    app = Admission(Deadline(endless(lambda: closed.append(True)), 0.5), lifecycle, 4)
    with served(app) as port, silent(port), silent(port):
        wait_until(lambda: lifecycle.inflight == 2, 5)
        wait_until(lambda: lifecycle.inflight == 0, 5)
        # The generator ends as well, and with it a request to the engine.
        wait_until(lambda: closed == [True, True], 5)
