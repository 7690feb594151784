"""Reading a streamed answer: which chunks are tokens, when they came, and what went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import httpx
import pytest

from metok_vllm.benchmarks.throughput.stream import (
    Answer,
    Outcome,
    ask,
    carries_token,
    events,
    refusal,
)
from tests.benchmarks.openai_server import request


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
    answer.take({"choices": [choice]}, 3.0)
    assert answer.times_s == [3.0] * is_token


def asked(response: httpx.Response | Exception) -> Outcome:
    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    async def run() -> Outcome:
        transport = httpx.MockTransport(handle)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            ticks = count()
            return await ask(client, request("k"), b"{}", lambda: float(next(ticks)))

    return asyncio.run(run())


STREAM = b"""data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}

data: {"choices": [{"delta": {"content": "on"}, "token_ids": [4, 5]}]}

data: {"choices": [{"delta": {"content": "e"}, "token_ids": [6]}], "metok": {"preset": "max"}}

data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}

"""


def test_an_answer_is_kept_whole() -> None:
    outcome = asked(httpx.Response(200, content=STREAM + b"data: [DONE]\n\n"))
    assert outcome.error is None
    assert (outcome.text, outcome.first_piece, outcome.token_ids) == ("one", "on", (4, 5, 6))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (9, 3)
    assert outcome.metok == {"preset": "max"}
    # The clock ticks when the request starts, when bytes come, and when the stream has ended.
    assert (outcome.started_s, outcome.token_times_s, outcome.ended_s) == (0.0, (1.0, 1.0), 2.0)
    assert (outcome.ttft_s, outcome.end_to_end_s) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (httpx.Response(200, content=STREAM), "the answer broke off before its end"),
        (httpx.Response(200, content=b"data: [DONE]\n"), "no token came"),
        (httpx.Response(200, content=b"data: {oops\n"), "a chunk is not JSON"),
        (
            httpx.Response(200, content=b'data: {"error": {"message": "engine"}}\ndata: [DONE]\n'),
            "engine",
        ),
        (httpx.Response(422, json={"error": {"message": "unreadable"}}), "422: unreadable"),
        (httpx.Response(502, content=b"<html>"), "502"),
        (httpx.ConnectError("refused"), "ConnectError: refused"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
    ],
)
def test_every_failure_is_an_outcome(response: httpx.Response | Exception, error: str) -> None:
    outcome = asked(response)
    assert outcome.error == error
    assert outcome.key == "k"


def test_a_refusal_in_other_shapes() -> None:
    assert refusal(400, b'{"message": "old envelope"}') == "400: old envelope"
    assert refusal(500, b"[]") == "500: no reason given"
