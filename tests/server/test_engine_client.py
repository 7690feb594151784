"""The engine client: shares of clients, and requests whose media the engine lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.outputs import CompletionOutput, RequestOutput

from metok_vllm.server.engine_client import RENDER_AGAIN, EngineShare, RetryingClient, limit_clients
from metok_vllm.video.requester import REQUESTER, Requester


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_beyond_its_share_a_client_waits_in_order_and_others_do_not() -> None:
    async def main() -> None:
        share, began = EngineShare(2), []
        release = {name: asyncio.Event() for name in "abcd"}

        async def ask(name: str, client: str) -> None:
            async with share.sequences(client, 1):
                began.append(name)
                await release[name].wait()

        tasks = [asyncio.ensure_future(ask(name, "one")) for name in "abc"]
        await settled()
        tasks.append(asyncio.ensure_future(ask("d", "other")))
        await settled()
        assert began == ["a", "b", "d"]
        release["b"].set()
        await settled()
        assert began == ["a", "b", "d", "c"]
        for event in release.values():
            event.set()
        await asyncio.gather(*tasks)
        assert (share._running, share._waiting) == ({}, {})

    run(main())


def test_more_sequences_than_a_share_count_as_the_share() -> None:
    async def main() -> None:
        share = EngineShare(4)
        async with share.sequences("one", 100):
            waiting = asyncio.ensure_future(share._acquire("one", 1))
            await settled()
            assert not waiting.done()
        await waiting

    run(main())


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=30,
)


@given(STEPS)
def test_shares_are_never_exceeded_or_lost(steps: list[Any]) -> None:
    async def main() -> None:
        share = EngineShare(4)
        held: Counter[str] = Counter()

        async def ask(client: str, count: int, pauses: int) -> None:
            async with share.sequences(client, count):
                held[client] += min(count, 4)
                assert held[client] <= 4
                try:
                    for _ in range(pauses):
                        await asyncio.sleep(0)
                finally:
                    held[client] -= min(count, 4)

        tasks = []
        for client, count, pauses, leaves in steps:
            tasks.append(asyncio.ensure_future(ask(client, count, pauses)))
            await asyncio.sleep(0)
            if leaves:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not task.done() or task.cancelled() or not task.exception() for task in tasks)
        assert (share._running, share._waiting) == ({}, {})

    run(main())


class Engine:
    """An engine client whose requests run until `go` is set."""

    def __init__(self, places: int) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=places),
            parallel_config=SimpleNamespace(data_parallel_size=1, _api_process_count=1),
        )
        self.running: list[str] = []
        self.go = asyncio.Event()

    async def generate(
        self, _prompt: Any, _params: Any, request_id: str, **_more: Any
    ) -> AsyncGenerator[Any, None]:
        self.running.append(request_id)
        try:
            await self.go.wait()
            yield request_id
        finally:
            self.running.remove(request_id)


@pytest.mark.parametrize("leaves", [False, True])
def test_one_client_cannot_fill_the_engine(leaves: bool) -> None:
    async def main() -> None:
        engine = Engine(32)
        limit_clients(engine)

        async def ask(client: str, number: int) -> list[Any]:
            REQUESTER.set(Requester(client=client))
            stream = engine.generate("prompt", SimpleNamespace(n=1), f"{client}{number}")
            REQUESTER.set(None)
            return [output async for output in stream]

        mine = [asyncio.ensure_future(ask("me", number)) for number in range(40)]
        await settled()
        assert len(engine.running) == 30
        other = asyncio.ensure_future(ask("you", 0))
        await settled()
        assert "you0" in engine.running
        if leaves:
            for task in mine:
                task.cancel()
            await settled()
            assert engine.running == ["you0"]
        engine.go.set()
        assert await other == ["you0"]
        answers = await asyncio.gather(*mine, return_exceptions=True)
        assert leaves or answers == [[f"me{number}"] for number in range(40)]
        assert engine.running == []

    run(main())


def output(reason: str | None, *tokens: int) -> RequestOutput:
    choice = CompletionOutput(0, "", tokens, None, None, finish_reason=reason)
    return RequestOutput("id", None, [1], None, [choice], finished=reason is not None)


LOST = output("error")
ANSWER = [output(None, 1), output("stop", 2)]


class Client:
    """An engine client with canned outputs, one list per call."""

    errored = False

    def __init__(self, *answers: list[RequestOutput]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, str]] = []
        self.open = 0

    async def generate(
        self, prompt: Any, _params: Any, request_id: str, **_more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        self.calls.append((prompt, request_id))
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
        stream = RetryingClient(client).generate("rendered", None, "id", priority=0)
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
    assert client.calls == [("rendered", "id")]


def test_a_request_with_lost_media_is_sent_again() -> None:
    client = Client([LOST], ANSWER)
    assert answer(client) == ANSWER
    assert [prompt for prompt, _ in client.calls] == ["rendered", "rendered again"]
    assert len({request_id for _, request_id in client.calls}) == 2
    assert client.open == 0


def test_a_request_is_sent_again_only_once() -> None:
    client = Client([LOST], [LOST])
    assert answer(client) == [LOST]


@pytest.mark.parametrize("last", [output("error"), output("error", 5)])
def test_an_error_after_the_first_token_is_passed_on(last: RequestOutput) -> None:
    outputs = [output(None, 1), last]
    assert answer(Client(outputs)) == outputs


def test_requests_without_media_are_not_sent_again() -> None:
    assert answer(Client([LOST]), renders=False) == [LOST]


def test_closing_the_stream_ends_the_request() -> None:
    client = Client(ANSWER)
    assert answer(client, take=1) == ANSWER[:1]
    assert client.open == 0


def test_other_attributes_are_the_engine_client_s() -> None:
    assert RetryingClient(Client()).errored is False
