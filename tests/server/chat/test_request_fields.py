"""What a chat request may set, its schema, and what the server makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from vllm.exceptions import VLLMValidationError

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.request_fields import (
    MetokChatRequest,
    check_client_options,
    needs_prompt_logprobs,
    request_config,
    request_schema,
    without_pruning,
)
from tests.server.chat.serving_chat import request


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
    def test_settings_of_a_request(self, values: dict[str, Any]) -> None:
        config = request_config(request(metok=values), METokConfig())
        assert config == METokConfig().for_request(values)
        assert config != METokConfig()

    def test_a_request_cannot_change_the_pruning_layers(self) -> None:
        with pytest.raises(ConfigError, match="fixed when the server starts"):
            request_config(request(metok={"pruning_layers": [2, 4, 6]}), METokConfig())

    @pytest.mark.parametrize("values", [None, {}])
    def test_a_request_without_settings(self, values: dict[str, Any] | None) -> None:
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
    def test_settings_that_a_request_may_not_set(self, values: dict[str, Any], param: str) -> None:
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


def test_every_field_of_a_request_has_a_type_and_a_help_text() -> None:
    properties = request_schema()["properties"]
    assert set(properties) == REQUEST_FIELDS
    for name, described in properties.items():
        assert described.get("type") or described.get("anyOf"), name
        assert described["description"]
        assert "default" not in described


def test_the_request_of_the_chat_endpoint_has_it() -> None:
    found = MetokChatRequest.model_json_schema()["properties"]["metok"]
    assert request_schema() in found["anyOf"]
    assert {"type": "null"} in found["anyOf"]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"enabled": False},
        {"preset": "max", "num_events": 6, "strides": [2, 4, 8], "stages": [1, 2]},
        {"key_event_ratio": 0.5, "key_frames_per_event": 0.25, "keep_ratio": 1},
        {"rule": "evs", "rule_keep": 0.1},
    ],
)
def test_values_that_the_schema_accepts_are_valid_settings(values: dict[str, object]) -> None:
    jsonschema.validate(values, request_schema())
    METokConfig().for_request(values)


@pytest.mark.parametrize(
    "values",
    [
        {"enabled": "no"},
        {"preset": "tiny"},
        {"num_events": 2.5},
        {"strides": [2, 4]},
        {"pruning_layers": [1, 2, 3]},
        {"rule": "best"},
    ],
)
def test_values_that_the_schema_refuses_are_config_errors(values: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, request_schema())
    with pytest.raises(ConfigError):
        METokConfig().for_request(values)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt_logprobs": 0},
        {"prompt_logprobs": 2},
        {"echo": True},
        {"echo": True, "top_logprobs": 3, "logprobs": True},
        {"logprobs": True, "top_logprobs": 3},
        {"echo": True, "top_logprobs": None},
    ],
)
def test_prompt_logprobs_as_in_the_sampling_params(fields: dict[str, Any]) -> None:
    body = MetokChatRequest(messages=[{"role": "user", "content": "?"}], model="m", **fields)
    engine_is_asked = body.to_sampling_params(8, {}).prompt_logprobs is not None
    assert needs_prompt_logprobs(body) == engine_is_asked


def test_beam_search_never_needs_prompt_logprobs() -> None:
    messages = [{"role": "user", "content": "?"}]
    body = MetokChatRequest(messages=messages, model="m", use_beam_search=True, prompt_logprobs=2)
    assert not needs_prompt_logprobs(body)
