"""The chat handler: what it passes to the processor, and where its report comes from."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat

from metok_vllm.config import METokConfig
from metok_vllm.models.request import RequestOptions
from metok_vllm.plan.prompt import Pruning
from metok_vllm.plan.request import RequestPlan
from metok_vllm.server.chat.rendered import RenderedRequest
from metok_vllm.server.chat.request_fields import MetokChatRequest
from tests.server.chat.serving_chat import ENTRY, PLAN, TEXT, VIDEO, Core, request, serving


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

    def test_the_processor_gets_the_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = self.rendered(monkeypatch, METokConfig(), mm_processor_kwargs={"a": 1})
        options = RequestOptions(METokConfig(), TEXT["text"], "user_turn")
        assert body.mm_processor_kwargs == {"a": 1, "metok": options}

    def test_the_request_s_own_settings_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = self.rendered(monkeypatch, METokConfig(), metok={"num_events": 3})
        options = RequestOptions(METokConfig(num_events=3), TEXT["text"], "user_turn")
        assert body.mm_processor_kwargs == {"metok": options}
        assert body.metok == {"num_events": 3}

    def test_a_request_without_text_has_no_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        messages = [{"role": "user", "content": [VIDEO]}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs == {"metok": RequestOptions(METokConfig(), "", "")}

    def test_no_options_without_video_or_metok(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.rendered(monkeypatch, None).mm_processor_kwargs is None
        messages = [{"role": "user", "content": "Hello"}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs is None


class TestEvents:
    def test_every_worker_of_every_engine_is_asked_for_the_videos(self) -> None:
        """vLLM's collective_rpc returns only the first engine's results."""
        core = Core([[{"a": None}], [{"a": ENTRY}]])
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=core)
        assert asyncio.run(RenderedRequest(PLAN, 7).events(chat.engine_client)) == [
            {"a": None},
            {"a": ENTRY},
        ]
        assert core.calls == [("collective_rpc", "metok_events", None, (["a"],), None)]

    @pytest.mark.parametrize(("stages", "num_calls"), [((2, 3), 1), ((3,), 0), ((), 0)])
    def test_no_worker_is_called_if_events_are_unused(
        self, stages: tuple[int, ...], num_calls: int
    ) -> None:
        core = Core([[{"a": ENTRY}]])
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=core)
        asyncio.run(RenderedRequest(replace(PLAN, stages=stages), 7).events(chat.engine_client))
        assert len(core.calls) == num_calls

    def test_a_failed_event_call_leaves_the_report_without_events(self) -> None:
        chat = serving()
        chat.engine_client = SimpleNamespace(engine_core=Core(RuntimeError("shutting down")))
        assert asyncio.run(RenderedRequest(PLAN, 7).events(chat.engine_client)) == []


def engine_of() -> Any:
    """An engine client with the facts that a report needs, and no events."""
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    text = SimpleNamespace(**dict.fromkeys(names, 1), num_hidden_layers=8)
    config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=16),
        model_config=SimpleNamespace(hf_text_config=text),
    )
    return SimpleNamespace(vllm_config=config, engine_core=Core([[{"a": None}]]))


def fallbacks(reason: str) -> float:
    return REGISTRY.get_sample_value("metok_fallbacks_total", {"reason": reason}) or 0.0


def test_a_plan_follows_videos_that_moved() -> None:
    plan = RequestPlan("balanced", (1,), "user_turn", PLAN.videos * 2)
    moved = plan.moved([3, 50])
    assert [video.start for video in moved.videos] == [3, 50]
    assert moved.videos[0] == replace(PLAN.videos[0], start=3)


class TestReport:
    STAGED = RequestPlan(
        "balanced",
        (1, 2, 3),
        "user_turn",
        (replace(PLAN.videos[0], start=4, pruning=Pruning.of(METokConfig(), Fraction(3, 5))),),
    )

    def report(self, chat: Any, plan: RequestPlan, **pending: Any) -> Any:
        rendered = RenderedRequest(plan, 64, **pending)
        events = asyncio.run(rendered.events(chat.engine_client))
        return rendered.report(chat.engine_client, chat.metok, events)

    def test_the_report_names_the_fallback(self) -> None:
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
        report = self.report(chat, self.STAGED)
        assert report["unpruned"] is None
        # Of 40 tokens 24 are in key events: 0.76 * (24 + 16 / 2) and 0.76 ** 2 * 24, rounded up.
        assert report["visual_tokens"]["stages"] == [40, 25, 14, 0]

    @pytest.mark.parametrize(
        ("excluded", "reason"),
        [("prompt_logprobs", "prompt_logprobs"), ("beam_search", "beam_search")],
    )
    def test_the_report_names_the_reason_for_less_pruning(self, excluded: str, reason: str) -> None:
        chat = serving(metok=METokConfig(alignment_model="towers"))
        chat.engine_client = engine_of()
        before = fallbacks(reason)
        report = self.report(chat, self.STAGED, excluded=excluded)
        assert report["unpruned"] == reason
        assert report["fallback"] is None
        assert fallbacks(reason) == before + 1
