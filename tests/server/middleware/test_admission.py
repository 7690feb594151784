from __future__ import annotations

import asyncio

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metok_vllm.server.middleware.admission import Admission, Refusal
from metok_vllm.server.middleware.body import BodyReader
from metok_vllm.server.middleware.key_check import TENANT
from metok_vllm.server.middleware.lifecycle import Lifecycle
from tests.server.http_servers import Client, answering, body_scope, http_scope, through


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
def test_one_client_never_has_all_places(kind: type[Refusal]) -> None:
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


def test_clients_that_are_done_are_forgotten() -> None:
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


def test_a_place_is_given_back_when_the_app_fails() -> None:
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
