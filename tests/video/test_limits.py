"""Values of limits that are refused, and the one that follows another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from metok_vllm.errors import ConfigError
from metok_vllm.video import MediaLimits

NUMBERS = [f.name for f in dataclasses.fields(MediaLimits) if type(f.default) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1])
def test_numbers_that_limit_nothing(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .*{value}") as caught:
        dataclasses.replace(MediaLimits(), **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_environment_that_limits_nothing(value: str) -> None:
    with pytest.raises(ConfigError):
        MediaLimits.from_env({"METOK_MEDIA_DECODE_DEADLINE_S": value})


def test_default_frames_follow_a_lower_maximum() -> None:
    assert MediaLimits().default_frames == 32
    assert MediaLimits.from_env({"METOK_MEDIA_MAX_FRAMES": "16"}).default_frames == 16
    assert MediaLimits(max_frames=16, default_frames=8).default_frames == 8


def test_frames_go_to_1024() -> None:
    assert MediaLimits().max_frames == 128
    assert MediaLimits.from_env({"METOK_MEDIA_MAX_FRAMES": "1024"}).max_frames == 1024
    with pytest.raises(ConfigError, match="max_frames must be at most 1024, got 1025") as caught:
        MediaLimits(max_frames=1025)
    assert caught.value.field == "max_frames"
