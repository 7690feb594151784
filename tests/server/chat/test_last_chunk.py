"""The report in the last chunk of a stream; all other chunks are unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.server.chat.rendered import RenderedRequest
from tests.server.chat.serving_chat import PLAN, Core, serving

CHUNK = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'


def chunk(content: str, finish: str = "null") -> str:
    # As vLLM 0.32 writes them.
    delta = json.dumps({"content": content})
    return (
        f'data: {{{CHUNK},"choices":[{{"index":0,"delta":{delta},"logprobs":null,'
        f'"finish_reason":{finish}}}]}}\n\n'
    )


ROLE = (
    f'data: {{{CHUNK},"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}}}}]}}\n\n'
)
USAGE = f'data: {{{CHUNK},"choices":[],"usage":{{"prompt_tokens":7,"total_tokens":9}}}}\n\n'
ERROR = 'data: {"error":{"message":"no","type":"t","param":null,"code":500}}\n\n'
DONE = "data: [DONE]\n\n"
REPORT = {"preset": "balanced", "workers": [{}]}


def chat_on(core: Any) -> Any:
    """METok's chat handler with an engine."""
    chat = serving()
    chat.engine_client = SimpleNamespace(engine_core=core)
    return chat


class Rendered(RenderedRequest):
    """A request with a short report."""

    def report(self, _engine: Any, _metok: Any, events: list[Any]) -> dict[str, Any]:
        return {"preset": "balanced", "workers": events}


def streamed(*items: str) -> list[str]:
    chat = chat_on(Core([[{}]]))

    async def source() -> AsyncGenerator[str, None]:
        for item in items:
            yield item

    async def collect() -> list[str]:
        return [item async for item in chat._with_report(source(), Rendered(PLAN, 7))]

    return asyncio.run(collect())


class BusyCore:
    """An engine that never answers."""

    cancelled = False

    async def call_utility_all_async(self, *_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


def metok_of(item: str) -> Any:
    return json.loads(item.removeprefix("data: ")).get("metok")


class TestStream:
    def test_the_last_chunk_carries_the_report(self) -> None:
        tricky = 'He said "finish_reason":"stop" and "choices":[] – ok'
        items = [ROLE, chunk(tricky), chunk(".", '"stop"'), DONE]
        out = streamed(*items)
        assert out[:2] == items[:2]
        assert out[3] == DONE
        last = json.loads(out[2].removeprefix("data: "))
        assert last.pop("metok") == REPORT
        assert last["choices"][0].pop("metok") == REPORT
        assert last == json.loads(items[2].removeprefix("data: "))

    def test_with_usage_that_is_the_usage_chunk(self) -> None:
        items = [ROLE, chunk("a"), chunk(".", '"length"'), USAGE, DONE]
        out = streamed(*items)
        assert out[:2] == items[:2]
        finishing = json.loads(out[2].removeprefix("data: "))
        assert "metok" not in finishing
        assert finishing["choices"][0].pop("metok") == REPORT
        assert finishing == json.loads(items[2].removeprefix("data: "))
        assert metok_of(out[3]) == REPORT
        assert json.loads(out[3][6:])["usage"] == {"prompt_tokens": 7, "total_tokens": 9}

    def test_several_choices_end_at_different_times(self) -> None:
        items = [chunk("a", '"stop"'), chunk("b"), chunk("c", '"stop"'), DONE]
        out = streamed(*items)
        assert json.loads(out[0][6:])["choices"][0]["metok"] == REPORT
        assert out[1] == items[1]
        assert metok_of(out[2]) == REPORT

    def test_an_error_is_passed_on_without_a_report(self) -> None:
        assert streamed(ROLE, chunk("a"), ERROR, DONE) == [ROLE, chunk("a"), ERROR, DONE]

    def test_the_error_of_a_dead_engine_is_for_the_client(self) -> None:
        error = json.loads(serving().create_streaming_error_response(EngineDeadError()))["error"]
        assert error["code"] == 503
        assert "engine has stopped" in error["message"]
        other = json.loads(serving().create_streaming_error_response(ValueError("too long")))
        assert (other["error"]["message"], other["error"]["code"]) == ("too long", 400)

    def test_tokens_are_not_held_back(self) -> None:
        passed: list[str] = []

        async def source() -> AsyncGenerator[str, None]:
            yield chunk("a")
            assert passed == [chunk("a")]
            yield chunk("b", '"stop"')

        async def collect() -> None:
            async for item in chat_on(Core([[{}]]))._with_report(source(), Rendered(PLAN, 7)):
                passed.append(item)

        asyncio.run(collect())
        assert passed == [chunk("a"), chunk("b", '"stop"')]

    def test_events_are_fetched_during_the_stream(self) -> None:
        """A busy engine answers only between two steps, so a call at the end would delay it."""
        core = Core([[{}]])

        async def source() -> AsyncGenerator[str, None]:
            assert core.calls == []  # nothing is encoded before the first token
            yield ROLE
            await asyncio.sleep(0)
            assert len(core.calls) == 1
            yield chunk("a", '"stop"')
            yield DONE

        async def collect() -> list[str]:
            stream = chat_on(core)._with_report(source(), Rendered(PLAN, 7))
            return [item async for item in stream]

        assert metok_of(asyncio.run(collect())[1]) == REPORT
        assert [method for _, method, *_ in core.calls] == ["metok_events"]

    def test_closing_the_stream_closes_vllm_s(self) -> None:
        closed: list[bool] = []
        core = BusyCore()

        async def source() -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield chunk("a")
            finally:
                closed.append(True)

        async def leave() -> None:
            stream = chat_on(core)._with_report(source(), Rendered(PLAN, 7))
            await anext(stream)
            await asyncio.sleep(0)
            await stream.aclose()

        asyncio.run(leave())
        assert closed == [True]
        assert core.cancelled
