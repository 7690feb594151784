"""Values of limits that are refused, and the one that follows another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from metok_vllm.errors import ConfigError, MediaTooLargeError
from metok_vllm.video import MediaLimits, probe
from metok_vllm.video.decoding import fitting_factor
from metok_vllm.video.frame_list import read_frame_list
from metok_vllm.video.limits import Transport
from metok_vllm.video.probing import check_size
from metok_vllm.video.walking import check_walk
from tests.video import clips

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


TINY = MediaLimits(max_walked_frames=1, max_walked_pixels=1, max_frames=1, max_bytes=1)
REFUSALS: dict[str, Callable[[], object]] = {
    "max-bytes": lambda: check_size(2, TINY),
    "max-remote-bytes": lambda: check_size(1 << 40, TINY, Transport.REMOTE),
    "max-local-bytes": lambda: check_size(1 << 40, TINY, Transport.LOCAL),
    "max-walked-frames": lambda: check_walk(2, 1, TINY),
    "max-walked-pixels": lambda: check_walk(1, 2, TINY),
    "max-decoded-bytes": lambda: fitting_factor(2, 1, 1, 5),
    "max-frames": lambda: read_frame_list([b"a", b"b"], TINY),
    "max-frame-pixels": lambda: probe(clips.encode(num_frames=1), MediaLimits(max_frame_pixels=9)),
}


@pytest.mark.parametrize("flag", REFUSALS)
def test_a_refusal_names_the_flag_that_raises_its_limit(flag: str) -> None:
    with pytest.raises(MediaTooLargeError, match=rf"\(--metok-media-{flag}[);]"):
        REFUSALS[flag]()
    assert flag.replace("-", "_") in {field.name for field in dataclasses.fields(MediaLimits)}
