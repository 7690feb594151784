"""One conversation about a video: each next turn sends the whole history again.

The history is what the client sent and what the server answered, as text: chat servers keep no
state. The next turn starts when the answer has ended, so that one request is in flight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.client.endpoint import MESSAGES_END, BenchRequest
from metok_vllm.benchmarks.client.stream import Clock, Outcome, stream_answer

if TYPE_CHECKING:
    import aiohttp


async def converse(
    session: aiohttp.ClientSession,
    request: BenchRequest,
    body: bytes,
    clock: Clock,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Send `body` of `request`, then its later questions; the outcome of each turn that was sent.

    A failed turn ends the conversation, because the next one would lack its answer.
    """
    outcomes: list[Outcome] = []
    for turn in range(request.turns):
        if outcomes:
            answer = {"role": "assistant", "content": outcomes[-1].content}
            question = {"role": "user", "content": request.later[turn - 1]}
            body = with_messages(body, answer, question)
        outcome = await stream_answer(session, at_turn(request, turn), body, clock)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(outcome)
        if outcome.error is not None:
            break
    return outcomes


def at_turn(request: BenchRequest, turn: int) -> BenchRequest:
    """The request of a turn, for its outcome: every turn has a key of its own."""
    return replace(request, key=f"{request.key}-turn{turn}", turn=turn) if turn else request


def with_messages(body: bytes, *messages: Mapping[str, Any]) -> bytes:
    """`body` of `Endpoint.body` with `messages` after its own.

    The video's base64 is copied, not encoded again: encoding would delay other streams.
    """
    assert body.endswith(MESSAGES_END)
    more = b"".join(b", " + json.dumps(message).encode() for message in messages)
    return body.removesuffix(MESSAGES_END) + more + MESSAGES_END
