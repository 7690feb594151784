from __future__ import annotations

import base64

import pytest

from metok_vllm.errors import ConfigError
from metok_vllm.server.settings import JSON_ALLOWANCE, ServerSettings, base64_size
from metok_vllm.video.limits import MediaLimits


def test_defaults_and_environment() -> None:
    assert ServerSettings.from_env({}) == ServerSettings()
    environ = {"METOK_SERVER_MAX_INFLIGHT": "0", "METOK_SERVER_REQUEST_TIMEOUT_S": "1.5"}
    assert ServerSettings.from_env(environ) == ServerSettings(0, 1.5)


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_invalid_values(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerSettings.from_env({"METOK_SERVER_MAX_INFLIGHT": value})
    assert caught.value.field == "max_inflight"


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_invalid_times(value: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)request_timeout_s"):
        ServerSettings.from_env({"METOK_SERVER_REQUEST_TIMEOUT_S": value})


@pytest.mark.parametrize("size", [0, 1, 2, 3, 100, 1000])
def test_base64_size(size: int) -> None:
    assert base64_size(size) == len(base64.b64encode(b"x" * size))


def test_the_largest_body_fits_the_most_videos() -> None:
    limits = MediaLimits(max_bytes=3000, max_videos=2)
    assert ServerSettings().body_limit(limits) == 2 * 4000 + JSON_ALLOWANCE
    assert ServerSettings(max_body_bytes=5).body_limit(limits) == 5
    assert ServerSettings(max_body_bytes=0).body_limit(limits) == 0


def test_the_largest_body_fits_the_limit_of_all_bodies() -> None:
    limits = MediaLimits(max_bytes=3000, max_videos=2)
    largest = ServerSettings().body_limit(limits)
    assert ServerSettings(max_inflight_body_bytes=5).inflight_body_limit(limits) == largest
    assert ServerSettings().inflight_body_limit(limits) == 2 << 30
    assert ServerSettings(max_inflight_body_bytes=0).inflight_body_limit(limits) == 0
    assert ServerSettings(max_body_bytes=0).inflight_body_limit(limits) == 0


def test_metrics_may_want_the_key() -> None:
    assert ServerSettings().metrics_without_key
    environ = {"METOK_SERVER_METRICS_WITHOUT_KEY": "off"}
    assert not ServerSettings.from_env(environ).metrics_without_key


def test_runs_of_images_have_at_least_two() -> None:
    assert ServerSettings.from_env({"METOK_SERVER_IMAGE_RUNS_AS_VIDEO": "2"}) == ServerSettings(
        image_runs_as_video=2
    )
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        ServerSettings(image_runs_as_video=1)
