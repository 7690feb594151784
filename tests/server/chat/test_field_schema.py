"""The `metok` object in the server's OpenAPI document: every field, and what refuses others."""

from __future__ import annotations

import jsonschema
import pytest

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.field_schema import request_schema
from metok_vllm.server.chat.serving import MetokChatRequest


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
def test_what_the_schema_takes_the_configuration_takes(values: dict[str, object]) -> None:
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
def test_what_the_schema_refuses_the_configuration_refuses(values: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, request_schema())
    with pytest.raises(ConfigError):
        METokConfig().for_request(values)
