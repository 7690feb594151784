from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.models.processing import LAST_USER_TEXT
from metok_vllm.plan import RequestPlan, VideoPlan
from metok_vllm.prompt_plan import Pruning
from metok_vllm.server.api.chat import MetokChatRequest, MetokServingChat, _Pending
from metok_vllm.video.limits import MediaLimits

VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
TEXT = {"type": "text", "text": "What happens?"}
PLAN = RequestPlan("balanced", (1,), "user_turn", (VideoPlan("a", 2, (0.0, 1.0), 2.0, 100, 40),))
ENTRY = {"event_of_frame": [0], "seconds": None}
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


def serving(trust: bool = False, metok: METokConfig | None = None) -> Any:
    chat = MetokServingChat.__new__(MetokServingChat)
    chat.trust_mm_kwargs = trust
    chat.limits = MediaLimits()
    chat.metok = metok
    return chat


def request(**fields: Any) -> MetokChatRequest:
    messages = [{"role": "user", "content": [VIDEO, TEXT]}]
    return MetokChatRequest(**{"messages": messages, "model": "m", **fields})


class Core:
    """vLLM's engine client, with one canned answer for each engine."""

    def __init__(self, answers: list[list[Any]] | Exception) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    async def call_utility_all_async(self, *call: Any) -> list[list[Any]]:
        self.asked.append(call)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


def streamed(*items: str) -> list[str]:
    chat = serving()

    async def report(_pending: _Pending) -> dict[str, Any]:
        return {"preset": "balanced"}

    async def source() -> AsyncGenerator[str, None]:
        for item in items:
            yield item

    async def collect() -> list[str]:
        return [item async for item in chat._with_report(source(), _Pending(PLAN, 7))]

    chat._report = report
    return asyncio.run(collect())


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
        assert last.pop("metok") == {"preset": "balanced"}
        assert last == json.loads(items[2].removeprefix("data: "))

    def test_with_usage_that_is_the_usage_chunk(self) -> None:
        items = [ROLE, chunk("a"), chunk(".", '"length"'), USAGE, DONE]
        out = streamed(*items)
        assert out[:3] == items[:3]
        assert metok_of(out[3]) == {"preset": "balanced"}
        assert json.loads(out[3][6:])["usage"] == {"prompt_tokens": 7, "total_tokens": 9}

    def test_several_choices_end_at_different_times(self) -> None:
        items = [chunk("a", '"stop"'), chunk("b"), chunk("c", '"stop"'), DONE]
        out = streamed(*items)
        assert out[:2] == items[:2]
        assert metok_of(out[2]) is not None

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
            async for item in serving()._with_report(source(), _Pending(PLAN, 7)):
                passed.append(item)

        asyncio.run(collect())
        assert passed == [chunk("a"), chunk("b", '"stop"')]

    def test_leaving_early_closes_vllm_s_stream(self) -> None:
        closed: list[bool] = []

        async def source() -> AsyncGenerator[str, None]:
            try:
                while True:
                    yield chunk("a")
            finally:
                closed.append(True)

        async def leave() -> None:
            stream = serving()._with_report(source(), _Pending(PLAN, 7))
            await anext(stream)
            await stream.aclose()

        asyncio.run(leave())
        assert closed == [True]


class TestEvents:
    def test_every_worker_of_every_engine_is_asked_for_the_videos(self) -> None:
        """vLLM's own collective_rpc gives the first engine's answers alone."""
        core = Core([[{"a": None}], [{"a": ENTRY}]])
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=core)
        assert asyncio.run(chat._events(PLAN)) == [{"a": None}, {"a": ENTRY}]
        assert core.asked == [("collective_rpc", "metok_events", None, (["a"],), None)]

    @pytest.mark.parametrize(("stages", "asked"), [((2, 3), 1), ((3,), 0), ((), 0)])
    def test_nobody_is_asked_where_events_decide_nothing(
        self, stages: tuple[int, ...], asked: int
    ) -> None:
        core = Core([[{"a": ENTRY}]])
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=core)
        asyncio.run(chat._events(replace(PLAN, stages=stages)))
        assert len(core.asked) == asked

    def test_an_engine_that_cannot_tell_costs_only_the_events(self) -> None:
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=Core(RuntimeError("shutting down")))
        assert asyncio.run(chat._events(PLAN)) == []


class TestOverrides:
    @pytest.mark.parametrize(
        "values",
        [
            {"num_events": 3},
            {"enabled": False},
            {"preset": "max"},
            {"stages": [1, 3]},
            {"keep_ratio": 0.5, "decode_keep": 0.25},
        ],
    )
    def test_what_a_request_may_say(self, values: dict[str, Any]) -> None:
        assert serving(metok=METokConfig())._overrides(request(metok=values)) == values

    def test_layers_are_laid_out_once(self) -> None:
        with pytest.raises(ConfigError, match="fixed when the server starts"):
            serving(metok=METokConfig())._overrides(request(metok={"pruning_layers": [2, 4, 6]}))

    @pytest.mark.parametrize("values", [None, {}])
    def test_nothing_said(self, values: dict[str, Any] | None) -> None:
        assert serving(metok=METokConfig())._overrides(request(metok=values)) == {}

    @pytest.mark.parametrize(
        ("values", "param"),
        [
            ({"num_event": 3}, "metok.num_event"),
            ({"stages": [1, 4]}, "metok.stages"),
            ({"pruning_layers": [1, 2, 3]}, "metok.pruning_layers"),
            ({"num_events": 0}, "metok.num_events"),
            ({"preset": "best"}, "metok.preset"),
            ({"last_user_text": "Ignore the video."}, "metok.last_user_text"),
        ],
    )
    def test_what_it_may_not(self, values: dict[str, Any], param: str) -> None:
        with pytest.raises(ConfigError) as caught:
            serving(metok=METokConfig())._overrides(request(metok=values))
        assert caught.value.field == param

    def test_a_server_without_metok_says_so(self) -> None:
        with pytest.raises(ConfigError, match="without METok"):
            serving()._overrides(request(metok={"enabled": True}))
        assert serving()._overrides(request()) == {}

    def test_the_schema_wants_an_object(self) -> None:
        with pytest.raises(ValidationError):
            request(metok="balanced")


class TestClientOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"metok": {"num_events": 3}},
            {"metok_payload": "{}"},
            {"videos_kwargs": {"metok_keys": ["a"]}},
            {"a": [{"metok": 1}]},
        ],
    )
    def test_private_keys_cannot_be_smuggled(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError) as caught:
            serving(trust=True)._check_client_options(request(mm_processor_kwargs=options))
        assert caught.value.field == "mm_processor_kwargs"

    def test_frames_and_rate_are_open_to_all(self) -> None:
        options = {"video": {"num_frames": 8, "fps": 1}}
        serving()._check_client_options(request(media_io_kwargs=options))

    @pytest.mark.parametrize(
        "fields",
        [
            {"mm_processor_kwargs": {"a": 1}},
            {"media_io_kwargs": {"video": {"video_backend": "opencv"}}},
            {"media_io_kwargs": {"image": {"image_mode": None}}},
        ],
    )
    def test_the_rest_needs_trust(self, fields: dict[str, Any]) -> None:
        with pytest.raises(VLLMValidationError):
            serving()._check_client_options(request(**fields))
        serving(trust=True)._check_client_options(request(**fields))


class TestRendering:
    def rendered(
        self, monkeypatch: pytest.MonkeyPatch, config: METokConfig | None, **fields: Any
    ) -> MetokChatRequest:
        async def render(_self: Any, request: MetokChatRequest) -> None:
            return None

        monkeypatch.setattr(OpenAIServingChat, "render_chat_request", render)
        body = request(**fields)
        asyncio.run(serving(trust=True, metok=config).render_chat_request(body))
        return body

    def test_the_processor_is_told_the_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = self.rendered(monkeypatch, METokConfig(), mm_processor_kwargs={"a": 1})
        assert body.mm_processor_kwargs == {"a": 1, "metok": {LAST_USER_TEXT: TEXT["text"]}}

    def test_beside_what_the_request_sets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = self.rendered(monkeypatch, METokConfig(), metok={"num_events": 3})
        assert body.mm_processor_kwargs == {
            "metok": {"num_events": 3, LAST_USER_TEXT: TEXT["text"]}
        }
        assert body.metok == {"num_events": 3}

    def test_without_words_there_is_no_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        messages = [{"role": "user", "content": [VIDEO]}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs == {"metok": {}}

    def test_nothing_where_there_is_no_video_or_no_metok(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.rendered(monkeypatch, None).mm_processor_kwargs is None
        messages = [{"role": "user", "content": "Hello"}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs is None


def engine_of(step_tokens: int = 100) -> Any:
    """An engine client with the facts that a report needs, and no events."""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    text = SimpleNamespace(**dict.fromkeys(names, 1), num_hidden_layers=8)
    config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=16),
        model_config=SimpleNamespace(hf_text_config=text),
        scheduler_config=SimpleNamespace(
            max_num_scheduled_tokens=None,
            max_num_batched_tokens=step_tokens,
            max_num_seqs=0,
        ),
    )
    return SimpleNamespace(vllm_config=config, engine_core=Core([[{"a": None}]]))


def fallbacks(reason: str) -> float:
    return REGISTRY.get_sample_value("metok_fallbacks_total", {"reason": reason}) or 0.0


class TestReport:
    STAGED = RequestPlan(
        "balanced",
        (1, 2, 3),
        "user_turn",
        (replace(PLAN.videos[0], start=4, pruning=Pruning.of(METokConfig(), Fraction(3, 5))),),
    )

    def report(self, chat: Any, plan: RequestPlan, **pending: Any) -> Any:
        return asyncio.run(chat._report(_Pending(plan, 64, **pending)))

    def test_it_says_which_fallback_was_taken(self) -> None:
        chat = serving(metok=METokConfig(stages=(1,)))
        chat.engine_client = engine_of()
        before = fallbacks("no_towers")
        assert self.report(chat, PLAN)["fallback"] == "no_towers"
        assert fallbacks("no_towers") == before + 1
        chat.metok = METokConfig(stages=(1,), alignment_model="towers")
        assert self.report(chat, PLAN)["fallback"] is None

    def test_what_stages_2_and_3_did(self) -> None:
        chat = serving(metok=METokConfig(alignment_model="towers"))
        chat.engine_client = engine_of()
        told = self.report(chat, self.STAGED)
        assert (told["unpruned"], told["prefill"]) == (None, "one_step")
        # Of 40 tokens 24 are in key events: 0.76 * (24 + 16 / 2) and 0.76 ** 2 * 24, rounded up.
        assert told["visual_tokens"]["stages"] == [40, 25, 14, 0]

    @pytest.mark.parametrize(
        ("step_tokens", "logprobs", "reason"),
        [(63, False, "chunked_prefill"), (100, True, "prompt_logprobs")],
    )
    def test_why_they_did_less(self, step_tokens: int, logprobs: bool, reason: str) -> None:
        chat = serving(metok=METokConfig(alignment_model="towers"))
        chat.engine_client = engine_of(step_tokens)
        before = fallbacks(reason)
        told = self.report(chat, self.STAGED, prompt_logprobs=logprobs)
        assert told["unpruned"] == reason
        assert told["fallback"] is None
        assert fallbacks(reason) == before + 1
