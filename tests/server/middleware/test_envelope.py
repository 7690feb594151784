from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from metok_vllm.server.middleware.envelope import (
    MAX_MESSAGE,
    MAX_QUOTED,
    ErrorEnvelope,
    error_body,
    is_envelope,
    short,
)
from tests.server.http_servers import Client, answering, http_scope


def run(app: Any) -> Client:
    client = Client()
    asyncio.run(ErrorEnvelope(app)(http_scope(), client.receive, client.send))
    return client


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"error": "Unauthorized"}'),
        (404, b'{"detail": "Not Found"}'),
        (405, b'{"detail": "Method Not Allowed"}'),
        (503, b""),
        (500, b'{"error": {"message": "", "code": 500}}'),
    ],
)
def test_other_errors_become_envelopes_with_a_message(status: int, body: bytes) -> None:
    client = run(answering(status, body))
    assert client.status == status
    error = json.loads(client.body)["error"]
    assert error["code"] == status
    assert len(error["message"]) > 10
    assert int(client.headers["content-length"]) == len(client.body)
    assert ("retry-after" in client.headers) == (status == 503)
    assert ("www-authenticate" in client.headers) == (status == 401)


def test_an_envelope_passes_unchanged() -> None:
    body = error_body(400, "max_tokens must be at least 1", "max_tokens")
    client = run(answering(400, body, ((b"x-request-id", b"7"),)))
    assert client.body == body
    assert client.headers["x-request-id"] == "7"


def test_a_good_body_that_is_no_envelope_passes_unchanged() -> None:
    client = run(answering(200, b'{"error": "no"}'))
    assert (client.status, client.body) == (200, b'{"error": "no"}')


def test_an_unhandled_error_is_a_500_without_details() -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("secret at /opt/models")

    client = run(app)
    assert client.status == 500
    assert is_envelope(client.body)
    assert b"secret" not in client.body
    assert b"/opt" not in client.body


def test_an_error_after_the_start_of_a_response_is_left_to_the_server() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("late")

    with pytest.raises(RuntimeError, match="late"):
        run(app)


def test_a_stream_passes_chunk_by_chunk() -> None:
    client = Client()
    seen: list[int] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"a", b"b"):
            await send({"type": "http.response.body", "body": body, "more_body": True})
            seen.append(len(client.sent))
        await send({"type": "http.response.body", "body": b""})

    asyncio.run(ErrorEnvelope(app)(http_scope(), client.receive, client.send))
    assert seen == [2, 3]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"error": null}', b'{"error": {"message": " "}}'])
def test_what_is_not_an_envelope(body: bytes) -> None:
    assert not is_envelope(body)


LONG = "a" * 100_000
SPACED = "a b " * 25_000


@pytest.mark.parametrize("said", [LONG, SPACED])
@pytest.mark.parametrize(
    "message",
    ["The model `{}` does not exist.", "Unknown part '{}'.", 'got "{}", not one of a, b', "'{}"],
)
def test_long_values_of_a_client_are_quoted_in_part(message: str, said: str) -> None:
    body = json.dumps({"error": {"message": message.format(said), "code": 400, "param": said}})
    client = run(answering(400, body.encode()))
    error = json.loads(client.body)["error"]
    assert error["code"] == 400
    assert len(error["message"]) < MAX_QUOTED + 60
    assert len(error["param"]) <= 100
    assert int(client.headers["content-length"]) == len(client.body)
    own = json.loads(error_body(400, message.format(said), said))["error"]
    assert (own["message"], own["param"]) == (error["message"], error["param"])


def test_messages_have_a_maximum_length() -> None:
    assert len(short(SPACED)) == MAX_MESSAGE
    assert short(SPACED).startswith("a b a b")


def test_a_long_message_of_the_server_stays_whole() -> None:
    message = (
        "This model's maximum context length is 16384 tokens. However, you requested 16 output "
        "tokens and your prompt contains at least 16369 input tokens, for a total of at least "
        "16385 tokens. Please reduce the length of the input prompt or the number of requested "
        "output tokens. (parameter=input_tokens, value=16369)"
    )
    assert short(message) == message


def test_a_disconnect_is_not_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise ClientDisconnect

    assert run(app).sent == []
    assert [record for record in caplog.records if record.exc_info] == []
