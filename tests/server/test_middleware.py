from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import vllm
from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm.server.api import middleware
from metok_vllm.server.api.lifecycle import Lifecycle
from metok_vllm.server.api.middleware import Admission, BodyLimit, Deadline, is_work
from tests.server.http_servers import Client, answering, http_scope, served


def run(app: ASGIApp, client: Client | None = None, path: str = "/v1/chat/completions") -> Client:
    client = client or Client()

    async def main() -> None:
        await app(http_scope(path), client.receive, client.send)

    asyncio.run(main())
    return client


def message(client: Client) -> str:
    return str(json.loads(client.body)["error"]["message"])


class TestBodyLimit:
    def test_a_body_at_the_limit_passes(self) -> None:
        client = run(BodyLimit(answering(200, b"ok"), 10), Client(b"12345", b"67890"))
        assert (client.status, client.body) == (200, b"ok")

    def test_one_byte_more_is_refused_while_it_arrives(self) -> None:
        client = run(BodyLimit(answering(200, b"ok"), 10), Client(b"12345", b"678901", b"never"))
        assert client.status == 413
        assert "10 bytes" in message(client)

    def test_a_declared_length_is_refused_before_the_app_runs(self) -> None:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise AssertionError("called")

        client = Client()
        scope = http_scope(headers=[(b"content-length", b"11")])
        asyncio.run(BodyLimit(app, 10)(scope, client.receive, client.send))
        assert client.status == 413

    def test_an_app_that_turns_the_disconnect_into_an_answer_is_not_heard(self) -> None:
        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            await answering(400, b"error while parsing")(_scope, Client().receive, send)

        client = run(BodyLimit(app, 3), Client(b"1234", b"5"))
        assert client.status == 413
        assert len(client.sent) == 2

    @pytest.mark.parametrize("chunked", [True, False])
    def test_over_a_real_connection(self, chunked: bool) -> None:
        with served(BodyLimit(answering(200, b"ok"), 100_000)) as port:
            pieces = (b"x" * 10_000 for _ in range(50))
            body: Iterator[bytes] | bytes = pieces if chunked else b"".join(pieces)
            status, content = _post(port, body, chunked)
            assert status == 413
            assert json.loads(content)["error"]["code"] == 413
            assert _post(port, b"small", False) == (200, b"ok")


def _post(port: int, body: Iterator[bytes] | bytes, chunked: bool) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/completions", body, encode_chunked=chunked)
        response = connection.getresponse()
        return response.status, response.read()


class TestAdmission:
    def test_beyond_the_limit_is_429_with_retry_after(self) -> None:
        lifecycle = Lifecycle()
        lifecycle.enter()
        app = Admission(answering(200, b"ok"), lifecycle, max_inflight=1)
        client = run(app)
        assert client.status == 429
        assert int(client.headers["retry-after"]) >= 1
        assert message(client)
        assert run(app, path="/ping").status == 200
        lifecycle.leave()
        assert run(app).status == 200

    def test_zero_means_no_limit(self) -> None:
        lifecycle = Lifecycle()
        for _ in range(5000):
            lifecycle.enter()
        assert run(Admission(answering(200, b"ok"), lifecycle, max_inflight=0)).status == 200

    def test_a_place_is_given_back_when_the_app_fails(self) -> None:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            assert lifecycle.inflight == 1
            raise RuntimeError("failed")

        lifecycle = Lifecycle()
        with pytest.raises(RuntimeError, match="failed"):
            run(Admission(app, lifecycle, max_inflight=1))
        assert lifecycle.inflight == 0

    def test_draining_is_503_with_retry_after_for_generation_only(self) -> None:
        lifecycle = Lifecycle()
        lifecycle.drain(0)
        app = Admission(answering(200, b"ok"), lifecycle, max_inflight=9)
        client = run(app)
        assert client.status == 503
        assert int(client.headers["retry-after"]) >= 1
        assert run(app, path="/ping").status == 200


class TestDeadline:
    def test_a_quick_answer_is_untouched(self) -> None:
        client = run(Deadline(answering(200, b"ok"), 5))
        assert (client.status, client.body) == (200, b"ok")

    def test_before_the_response_it_is_504_and_the_work_sees_the_client_gone(self) -> None:
        gone: list[bool] = []

        async def app(_scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.append(True)
            await answering(200, b"too late")(_scope, Client().receive, send)

        client = run(Deadline(app, 0.05))
        assert client.status == 504
        assert "0.05 seconds" in message(client)
        assert gone == [True]
        assert b"too late" not in client.body

    def test_a_stream_ends_with_an_error_event(self) -> None:
        async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
            await asyncio.sleep(60)

        client = run(Deadline(_ended_by_disconnect(app), 0.05))
        events = client.body.decode().split("\n\n")
        assert events[0] == "data: {}"
        assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == 504
        assert events[2] == "data: [DONE]"
        assert client.sent[-1].get("more_body", False) is False

    def test_work_that_does_not_care_is_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(middleware, "CANCEL_GRACE_S", 0.01)
        cancelled: list[bool] = []

        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        assert run(Deadline(app, 0.05)).status == 504
        assert cancelled == [True]

    def test_an_error_of_the_app_is_passed_on(self) -> None:
        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            raise RuntimeError("failed")

        with pytest.raises(RuntimeError, match="failed"):
            run(Deadline(app, 5))


def _ended_by_disconnect(app: ASGIApp) -> ASGIApp:
    # As starlette's StreamingResponse: a client that goes away ends the work.
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(app(scope, receive, send))
        while (await receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    return wrapped


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/messages/count_tokens",
        "/cohere/v2/chat",
        "/tokenize",
        "/invocations",
        "/a/route/of/tomorrow",
    ],
)
def test_everything_that_is_posted_is_work(path: str) -> None:
    assert is_work(http_scope(path))
    assert is_work(http_scope("/prefix" + path, root_path="/prefix"))
    assert not is_work(http_scope(path, method="OPTIONS"))
    assert not is_work(http_scope(path, method="GET"))


@pytest.mark.parametrize(
    "path", ["/ping", "/v1/responses/resp_1/cancel", "/inference/v1/abort_requests", "/wake_up/"]
)
def test_except_what_steers_the_server(path: str) -> None:
    assert not is_work(http_scope(path))
    assert not is_work(http_scope("/prefix" + path, root_path="/prefix"))


def test_the_control_routes_are_routes_of_vllm() -> None:
    """A path that vLLM does not have would be a hole that nobody sees."""
    package = Path(vllm.__file__).parent / "entrypoints"
    source = "\n".join(path.read_text() for path in package.rglob("api_router.py"))
    assert {path for path in middleware.CONTROL_PATHS if f'"{path}"' not in source} == set()
    assert '"/v1/responses/{response_id}/cancel"' in source
