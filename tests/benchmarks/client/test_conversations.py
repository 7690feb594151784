"""Conversations with a server that knows what it answered to each turn."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from starlette.types import Send

from metok_vllm.benchmarks.client.conversations import with_messages
from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import Answer, Outcome
from metok_vllm.benchmarks.throughput.load import Load, send
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, request, requests


@dataclass
class Chat(KnownServer):
    """Every turn has an answer of its own, and hits 10 cached tokens for each earlier message."""

    first_s: float = 0.03
    gap_s: float = 0.0
    tokens: int = 2

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        earlier = len(body["messages"]) - 1
        self.word = f"{body['messages'][0]['content']}/{earlier}/"
        self.cached_tokens = 10 * earlier
        await super().chat(body, send)


def conversation(number: int, turns: int = 3) -> BenchRequest:
    later = tuple(f"question {number}.{turn}" for turn in range(1, turns))
    return replace(request(str(number)), later=later)


def chat(server: Chat, count: int, max_concurrency: int = 1, turns: int = 3) -> list[Outcome]:
    some = [conversation(number, turns) for number in range(count)]
    with known_server(server) as endpoint:
        return list(asyncio.run(send(endpoint, some, Load(max_concurrency))).outcomes)


def test_a_turn_sends_the_history_in_order() -> None:
    """Catches answers left out, of another turn, or of the other conversation."""
    server = Chat()
    outcomes = chat(server, 2)
    assert [(o.key, o.turn) for o in outcomes] == [
        *(("0", 0), ("0-turn1", 1), ("0-turn2", 2)),
        *(("1", 0), ("1-turn1", 1), ("1-turn2", 2)),
    ]
    for number in (0, 1):
        first, second, third = server.bodies[3 * number : 3 * number + 3]
        said = [f"{number}/{earlier}/0 {number}/{earlier}/1 " for earlier in (0, 2)]
        assert third["messages"] == [
            {"role": "user", "content": str(number)},
            {"role": "assistant", "content": said[0]},
            {"role": "user", "content": f"question {number}.1"},
            {"role": "assistant", "content": said[1]},
            {"role": "user", "content": f"question {number}.2"},
        ]
        assert second["messages"] == third["messages"][:3]
        assert first["messages"] == third["messages"][:1]
        assert {k: v for k, v in third.items() if k != "messages"} == {
            k: v for k, v in first.items() if k != "messages"
        }
    assert [o.cached_tokens for o in outcomes] == [0, 20, 40] * 2


def test_conversations_run_beside_each_other_with_one_turn_in_flight() -> None:
    """Catches turns of one conversation at once, and a bound on turns, not conversations."""
    server = Chat(first_s=0.05)
    outcomes = chat(server, 4, max_concurrency=2)
    assert server.most_running == 2
    for turn, following in pairwise(outcomes):
        if following.turn:
            assert following.started_s >= turn.ended_s
    # The third conversation waits for the end of one that began before it.
    assert outcomes[6].started_s >= min(outcomes[2].ended_s, outcomes[5].ended_s)


def test_a_failed_turn_ends_its_conversation_only() -> None:
    """Catches a next turn with a hole in its history."""
    outcomes = chat(Chat(refuse=frozenset({"0"})), 2)
    assert [(o.key, o.error) for o in outcomes] == [
        ("0", "429: too many requests"),
        *(("1", None), ("1-turn1", None), ("1-turn2", None)),
    ]


def test_the_body_of_a_later_turn_has_the_messages_of_both() -> None:
    """Catches an appended message that lands outside the list, whatever field comes last."""
    endpoint = Endpoint("x", "http://h", "m", extra_body={"metok": {"strides": [[2]]}})
    body = endpoint.body(requests(1)[0])
    longer = with_messages(body, {"role": "assistant", "content": 'say ]} "x" é'})
    assert json.loads(longer) == {
        **json.loads(body),
        "messages": [
            {"role": "user", "content": "0"},
            {"role": "assistant", "content": 'say ]} "x" é'},
        ],
    }


def test_reasoning_is_not_sent_back() -> None:
    """Catches a history with thoughts, which no chat client returns."""
    answer = Answer()
    answer.add({"choices": [{"delta": {"reasoning": "hm "}}]}, 1.0)
    answer.add({"choices": [{"delta": {"content": "yes"}}]}, 2.0)
    assert ("".join(answer.pieces), "".join(answer.content)) == ("hm yes", "yes")
