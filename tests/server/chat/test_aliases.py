"""Model names with a preset: what they set, and what a request may set beside them."""

from __future__ import annotations

from typing import Any

import pytest
from vllm.entrypoints.serve.engine.protocol import ModelCard

from metok_vllm.config import METokConfig
from metok_vllm.config.presets import PRESETS
from metok_vllm.errors import ConfigError
from metok_vllm.server.chat.aliases import ModelAliases
from metok_vllm.server.chat.request_fields import request_config
from tests.server.chat.serving_chat import request

SERVED = METokConfig.from_dict({"presets": {"max": {"num_events": 4}}})
ALIASES = ModelAliases.of(["m", "n"], SERVED)


def test_every_served_name_has_every_preset() -> None:
    assert set(ALIASES.targets) == {f"{name}:{preset}" for name in "mn" for preset in PRESETS}


def test_without_metok_there_are_none() -> None:
    assert ModelAliases.of(["m"], None).targets == {}


def test_a_served_name_stays_a_plain_name() -> None:
    aliases = ModelAliases.of(["m", "m:max"], SERVED)
    assert "m:max" not in aliases
    assert "m:max:off" in aliases
    assert request_config(request(model="m:max"), SERVED, aliases) == SERVED


@pytest.mark.parametrize("preset", PRESETS)
def test_a_name_is_the_server_s_own_preset(preset: str) -> None:
    config = request_config(request(model=f"m:{preset}"), SERVED, ALIASES)
    assert config == SERVED.for_request({"preset": preset})


def test_explicit_fields_win_over_the_preset() -> None:
    asked = request(model="m:max", metok={"keep_ratio": 0.25, "preset": "max", "enabled": True})
    config = request_config(asked, SERVED, ALIASES)
    assert config == SERVED.for_request({"preset": "max", "keep_ratio": 0.25})
    assert config is not None
    assert config.num_events == 4


@pytest.mark.parametrize(
    ("model", "given", "field"),
    [
        ("m:max", {"preset": "quality"}, "metok.preset"),
        ("m:max", {"preset": "off"}, "metok.preset"),
        ("m:max", {"enabled": False}, "metok.enabled"),
        ("m:off", {"enabled": True}, "metok.enabled"),
        ("m:max", {"num_events": 0}, "metok.num_events"),
    ],
)
def test_a_contradiction_is_refused_by_name(model: str, given: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        request_config(request(model=model, metok=given), SERVED, ALIASES)
    assert caught.value.field == field


def test_other_names_choose_nothing() -> None:
    for model in ("m", "m:best", "other:max"):
        assert request_config(request(model=model), SERVED, ALIASES) == SERVED


def test_cards_name_their_parent() -> None:
    cards = ALIASES.cards([ModelCard(id="m", root="path", max_model_len=9)])
    assert [card.id for card in cards] == [f"m:{preset}" for preset in PRESETS]
    assert {(card.parent, card.root, card.max_model_len) for card in cards} == {("m", "path", 9)}
