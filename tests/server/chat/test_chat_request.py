"""What a request may say, and what the processor is told of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.exceptions import VLLMValidationError

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.models.request import RequestOptions
from metok_vllm.server.chat.options import (
    check_client_options,
    request_config,
    without_pruning,
)
from metok_vllm.server.chat.serving import MetokChatRequest
from tests.server.chat.serving_chat import TEXT, VIDEO, request, serving


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
        config = request_config(request(metok=values), METokConfig())
        assert config == METokConfig().for_request(values)
        assert config != METokConfig()

    def test_layers_are_laid_out_once(self) -> None:
        with pytest.raises(ConfigError, match="fixed when the server starts"):
            request_config(request(metok={"pruning_layers": [2, 4, 6]}), METokConfig())

    @pytest.mark.parametrize("values", [None, {}])
    def test_nothing_said(self, values: dict[str, Any] | None) -> None:
        assert request_config(request(metok=values), METokConfig()) == METokConfig()

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
            request_config(request(metok=values), METokConfig())
        assert caught.value.field == param

    def test_a_server_without_metok_says_so(self) -> None:
        with pytest.raises(ConfigError, match="without METok"):
            request_config(request(metok={"enabled": True}), None)
        assert request_config(request(), None) is None

    def test_the_schema_wants_an_object(self) -> None:
        with pytest.raises(ValidationError):
            request(metok="balanced")


class TestBeamSearch:
    @pytest.mark.parametrize(
        ("overrides", "stages"),
        [
            ({}, [1]),
            ({"preset": "max", "num_events": 3, "decode_keep": 0.5}, [1]),
            ({"stages": [2, 3], "keep_ratio": 0.5}, []),
        ],
    )
    def test_stages_2_and_3_are_left_out(
        self, overrides: dict[str, Any], stages: list[int]
    ) -> None:
        wanted = METokConfig().for_request(overrides)
        config = without_pruning(wanted)
        assert list(config.stages) == stages
        assert config == replace(wanted, stages=config.stages)

    @pytest.mark.parametrize("overrides", [{"stages": [1]}, {"enabled": False}, {"rule": "evs"}])
    def test_nothing_changes_where_nothing_is_pruned(self, overrides: dict[str, Any]) -> None:
        config = METokConfig().for_request(overrides)
        assert without_pruning(config) is config

    def test_fastv_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="beam search"):
            without_pruning(METokConfig(rule="fastv"))


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
            check_client_options(request(mm_processor_kwargs=options), trust=True)
        assert caught.value.field == "mm_processor_kwargs"

    def test_frames_and_rate_are_open_to_all(self) -> None:
        options = {"video": {"num_frames": 8, "fps": 1}}
        check_client_options(request(media_io_kwargs=options), trust=False)

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
            check_client_options(request(**fields), trust=False)
        check_client_options(request(**fields), trust=True)


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

    def test_beside_what_the_request_sets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        body = self.rendered(monkeypatch, METokConfig(), metok={"num_events": 3})
        options = RequestOptions(METokConfig(num_events=3), TEXT["text"], "user_turn")
        assert body.mm_processor_kwargs == {"metok": options}
        assert body.metok == {"num_events": 3}

    def test_without_words_there_is_no_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        messages = [{"role": "user", "content": [VIDEO]}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs == {"metok": RequestOptions(METokConfig(), "", "")}

    def test_nothing_where_there_is_no_video_or_no_metok(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.rendered(monkeypatch, None).mm_processor_kwargs is None
        messages = [{"role": "user", "content": "Hello"}]
        body = self.rendered(monkeypatch, METokConfig(), messages=messages)
        assert body.mm_processor_kwargs is None
