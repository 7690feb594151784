"""Reading a streamed answer: tokens, their arrival times, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.stream import (
    Answer,
    Outcome,
    carries_token,
    events,
    refusal,
    stream_answer,
)
from tests.benchmarks.throughput.openai_server import body_of, reply, request
from tests.server.http_servers import answering, served


def read(*pieces: bytes) -> list[tuple[bytes, float]]:
    async def given() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def all_of() -> list[tuple[bytes, float]]:
        ticks = count(1)
        return [event async for event in events(given(), lambda: float(next(ticks)))]

    return asyncio.run(all_of())


def test_an_event_has_the_time_of_its_last_byte() -> None:
    assert read(b"data: a\n\nda", b"ta: b", b"c\r\n\r\n: ping\n\ndata:d\n") == [
        (b"a", 1.0),
        (b"bc", 3.0),
        (b"d", 3.0),
    ]


def test_only_newlines_end_a_line() -> None:
    """JSON may hold U+2028, U+0085 and the form feed as they are; untrained models write them."""
    text = '{"a": "\u2028\u0085\x0c"}'
    assert read(f"data: {text}\n\n".encode()) == [(text.encode(), 1.0)]


@pytest.mark.parametrize(
    ("choice", "is_token"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"content": "word"}}, True),
        ({"delta": {"content": ""}, "finish_reason": None}, True),  # half a character
        ({"delta": {"content": ""}, "finish_reason": "stop"}, False),
        ({"delta": {"content": "word"}, "finish_reason": "length"}, True),
        ({"delta": {}, "finish_reason": "stop"}, False),
        ({"delta": {"role": "assistant", "content": "word"}}, True),
        ({"delta": {"reasoning": "hm"}}, True),
        ({"delta": {"content": ""}, "finish_reason": "length", "token_ids": [5]}, True),
        ({"delta": {"content": ""}, "token_ids": []}, False),
    ],
)
def test_which_chunks_carry_a_token(choice: dict[str, Any], is_token: bool) -> None:
    delta = choice["delta"]
    text = (delta.get("reasoning") or "") + (delta.get("content") or "")
    assert carries_token(choice, delta, text) is is_token
    answer = Answer()
    answer.add({"choices": [choice]}, 3.0)
    assert answer.times_s == [3.0] * is_token


def answer_of(app: ASGIApp, body: bytes = b"{}", timeout_s: float = 60) -> Outcome:
    async def run(endpoint: Endpoint) -> Outcome:
        async with endpoint.session(timeout_s) as session:
            ticks = count()
            return await stream_answer(session, request("k"), body, lambda: float(next(ticks)))

    with served(app) as port:
        return asyncio.run(run(Endpoint("server", f"http://127.0.0.1:{port}", "m")))


async def measure_body(_scope: Scope, receive: Receive, send: Send) -> None:
    size = len((await body_of(receive))["video"])
    await reply(send, 413, {"error": {"message": f"{size} bytes"}})


async def silent(_scope: Scope, _receive: Receive, _send: Send) -> None:
    await asyncio.sleep(2)


STREAM = b"""data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}

data: {"choices": [{"delta": {"content": "on"}, "token_ids": [4, 5]}]}

data: {"choices": [{"delta": {"content": "e"}, "token_ids": [6]}], "metok": {"preset": "max"}}

data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

"""


def test_a_complete_answer() -> None:
    outcome = answer_of(answering(200, STREAM + b"data: [DONE]\n\n"))
    assert outcome.error is None
    assert (outcome.text, outcome.first_piece, outcome.token_ids) == ("one", "on", (4, 5, 6))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (9, 3)
    assert outcome.cached_tokens is None
    assert outcome.metok == {"preset": "max"}
    # The clock ticks when the request starts, when bytes come, and when the stream has ended.
    assert (outcome.started_s, outcome.token_times_s, outcome.ended_s) == (0.0, (1.0, 1.0), 2.0)
    assert (outcome.ttft_s, outcome.end_to_end_s) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (200, STREAM, "the answer broke off before its end"),
        (200, b"data: [DONE]\n", "no token arrived"),
        (200, b"data: {oops\n", "a chunk is not JSON"),
        (200, b'data: {"error": {"message": "engine"}}\ndata: [DONE]\n', "engine"),
        (422, b'{"error": {"message": "unreadable"}}', "422: unreadable"),
        (502, b"<html>", "502"),
        (307, b"", "307"),  # redirects are not followed
    ],
)
def test_every_failure_is_an_outcome(status: int, content: bytes, error: str) -> None:
    outcome = answer_of(answering(status, content, ((b"location", b"http://127.0.0.1:9/"),)))
    assert outcome.error == error
    assert outcome.key == "k"


def test_a_large_body_is_sent_completely() -> None:
    body = b'{"video": "' + b"v" * 5_000_000 + b'"}'
    assert answer_of(measure_body, body).error == "413: 5000000 bytes"


def test_a_read_timeout_is_an_outcome() -> None:
    outcome = answer_of(silent, timeout_s=0.2)
    assert outcome.error is not None
    assert outcome.error.startswith("SocketTimeoutError")


def test_a_refusal_in_other_shapes() -> None:
    assert refusal(400, b'{"message": "old envelope"}') == "400: old envelope"
    assert refusal(500, b"[]") == "500: no reason given"
