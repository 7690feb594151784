"""The parser of settings: environment and flags accept the same spellings."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.config.environment import flag, truth, unknown_variables
from metok_vllm.errors import ConfigError
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits

TRUE = ["1", "true", "True", "TRUE", "yes", "Yes", "on", "ON", "y", "t", " true ", "\ton\n"]
FALSE = ["0", "false", "False", "no", "NO", "off", "Off", "n", "f", "  0"]
NEITHER = ["ture", "flase", "2", "-1", "yess", "enabled", "null", "[]", "1.0", "true false"]


@pytest.mark.parametrize("text", TRUE)
def test_spellings_of_true(text: str) -> None:
    assert truth(text)
    assert METokConfig.load(environ={"METOK_ENABLED": text}).enabled is True
    assert MediaLimits.from_env({"METOK_MEDIA_ALLOW_PRIVATE_HOSTS": text}).allow_private_hosts
    assert flag("METOK_WATCH_PARENT", False, {"METOK_WATCH_PARENT": text})


@pytest.mark.parametrize("text", FALSE)
def test_spellings_of_false(text: str) -> None:
    assert not truth(text)
    assert METokConfig.load(environ={"METOK_ENABLED": text}).enabled is False
    environ = {"METOK_MEDIA_ALLOW_PRIVATE_HOSTS": text}
    assert MediaLimits.from_env(environ).allow_private_hosts is False
    assert not flag("METOK_WATCH_PARENT", True, {"METOK_WATCH_PARENT": text})


@pytest.mark.parametrize("text", NEITHER)
def test_other_words_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        METokConfig.load(environ={"METOK_ENABLED": text})
    assert str(caught.value).startswith("METOK_ENABLED must be true or false, got ")
    assert repr(text) in str(caught.value)
    with pytest.raises(ConfigError, match="METOK_WATCH_PARENT"):
        flag("METOK_WATCH_PARENT", False, {"METOK_WATCH_PARENT": text})


@pytest.mark.parametrize("text", ["ture", "flase", "enabled", "null", "yess"])
def test_a_mistyped_true_is_not_a_host(text: str) -> None:
    with pytest.raises(ConfigError, match=f"allow_private_hosts.*{text}"):
        MediaLimits.from_env({"METOK_MEDIA_ALLOW_PRIVATE_HOSTS": text})


@pytest.mark.parametrize("text", ["", "  "])
def test_blank_is_unset(text: str) -> None:
    assert METokConfig.load(environ={"METOK_NUM_EVENTS": text}) == METokConfig()
    assert ServerSettings.from_env({"METOK_SERVER_MAX_INFLIGHT": text}) == ServerSettings()
    assert flag("METOK_WATCH_PARENT", True, {"METOK_WATCH_PARENT": text})


NUMBERS: list[tuple[str, str, str]] = [
    ("METOK_NUM_EVENTS", "5.5", "an integer"),
    ("METOK_NUM_EVENTS", "1e9", "an integer"),
    ("METOK_FEATURE_CACHE_BYTES", "64MiB", "an integer"),
    ("METOK_KEEP_RATIO", "most", "a number"),
    ("METOK_KEEP_RATIO", "nan", "a number"),
    ("METOK_KEY_FRAMES_PER_EVENT", "few", "a number"),
    ("METOK_MEDIA_MAX_VIDEOS", "8.0", "an integer"),
    ("METOK_MEDIA_MAX_BYTES", "64MiB", "an integer"),
    ("METOK_MEDIA_FETCH_TIMEOUT_S", "30s", "a number"),
    ("METOK_SERVER_MAX_INFLIGHT", "1.5", "an integer"),
    ("METOK_SERVER_REQUEST_TIMEOUT_S", "inf", "a number"),
]


@pytest.mark.parametrize(("name", "text", "wanted"), NUMBERS)
def test_numbers_are_refused_by_name(name: str, text: str, wanted: str) -> None:
    readers: Any = {"METOK_MEDIA_": MediaLimits.from_env, "METOK_SERVER_": ServerSettings.from_env}
    read = next((f for p, f in readers.items() if name.startswith(p)), None)
    with pytest.raises(ConfigError) as caught:
        read({name: text}) if read else METokConfig.load(environ={name: text})
    assert str(caught.value) == f"{name} must be {wanted}, got {text!r}"


def test_long_values_are_truncated_in_errors() -> None:
    for value in ("x" * 100_000, "\x00" * 100_000):
        with pytest.raises(ConfigError) as caught:
            METokConfig.load(environ={"METOK_ENABLED": value})
        assert len(str(caught.value)) < 260


def test_values_are_parsed_by_type() -> None:
    environ = {
        "METOK_NUM_EVENTS": " 7 ",
        "METOK_KEY_FRAMES_PER_EVENT": "0.5",
        "METOK_KEEP_RATIO": "1",
        "METOK_STAGES": "[1]",
        "METOK_ALIGNMENT_MODEL": "123",
        "METOK_PRESET": "off",
        "METOK_PRESETS": "null",
    }
    config = METokConfig.load(environ=environ)
    assert (config.num_events, config.key_frames_per_event, config.keep_ratio) == (7, 0.5, 1.0)
    assert (config.stages, config.alignment_model, config.preset) == ((1,), "123", "off")
    assert METokConfig.load(environ={"METOK_KEY_FRAMES_PER_EVENT": "3"}).key_frames_per_event == 3
    assert METokConfig.load(environ={"METOK_ALIGNMENT_MODEL": "null"}).alignment_model is None


def test_unknown_variables() -> None:
    environ = {"METOK_NUM_EVENT": "3", "METOK_WHATEVER": "1", "METOK_NUM_EVENTS": "3", "PATH": "x"}
    known = {"METOK_NUM_EVENTS", "METOK_STAGES"}
    assert unknown_variables(known, environ) == {
        "METOK_NUM_EVENT": "METOK_NUM_EVENTS",
        "METOK_WHATEVER": None,
    }
