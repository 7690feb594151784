"""A request whose media the engine lost is rendered and sent again, once, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput

from metok_vllm.server.chat.lost_media import RENDER_AGAIN, PersistentClient


def output(reason: str | None, *tokens: int) -> RequestOutput:
    choice = CompletionOutput(0, "", tokens, None, None, finish_reason=reason)
    return RequestOutput("id", None, [1], None, [choice], finished=reason is not None)


LOST = output("error")
ANSWER = [output(None, 1), output("stop", 2)]


class Client:
    """An engine client that gives canned outputs, a list a call."""

    errored = False

    def __init__(self, *answers: list[RequestOutput]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, str]] = []
        self.open = 0

    async def generate(
        self, prompt: Any, _params: Any, request_id: str, **_more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        self.asked.append((prompt, request_id))
        self.open += 1
        try:
            for item in self.answers.pop(0):
                yield item
        finally:
            self.open -= 1


def answer(client: Client, renders: bool = True, take: int | None = None) -> list[RequestOutput]:
    async def again() -> str:
        return "rendered again"

    async def main() -> list[RequestOutput]:
        RENDER_AGAIN.set(again if renders else None)
        stream = PersistentClient(client).generate("rendered", None, "id", priority=0)
        RENDER_AGAIN.set(None)  # a stream is read in the context of another task
        items: list[RequestOutput] = []
        async for item in stream:
            items.append(item)
            if len(items) == take:
                await stream.aclose()
                break
        return items

    return asyncio.run(main())


def test_an_answer_passes_through() -> None:
    client = Client(ANSWER)
    assert answer(client) == ANSWER
    assert client.asked == [("rendered", "id")]


def test_what_the_engine_lost_is_sent_again() -> None:
    client = Client([LOST], ANSWER)
    assert answer(client) == ANSWER
    assert [prompt for prompt, _ in client.asked] == ["rendered", "rendered again"]
    assert len({request_id for _, request_id in client.asked}) == 2
    assert client.open == 0


def test_only_once() -> None:
    client = Client([LOST], [LOST])
    assert answer(client) == [LOST]


@pytest.mark.parametrize("last", [output("error"), output("error", 5)])
def test_an_error_behind_tokens_is_told(last: RequestOutput) -> None:
    outputs = [output(None, 1), last]
    assert answer(Client(outputs)) == outputs


def test_requests_without_media_are_not_sent_again() -> None:
    assert answer(Client([LOST]), renders=False) == [LOST]


def test_a_client_that_leaves_ends_the_request() -> None:
    client = Client(ANSWER)
    assert answer(client, take=1) == ANSWER[:1]
    assert client.open == 0


def test_the_rest_is_the_engine_clients() -> None:
    assert PersistentClient(Client()).errored is False
