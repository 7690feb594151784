"""METok's settings and cache sizes of a server, read from its flags before it starts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.source import Source, flag_value, served_config
from metok_vllm.config import METokConfig
from metok_vllm.demo import CONFIG_FILE, MODEL_DIR
from metok_vllm.errors import ConfigError
from metok_vllm.server.commands.serve_args import parse


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("METOK_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--dtype", "half", "--metok-keep-ratio", "0.5", "--metok-keep-ratio=0.25"],
        ["--metok_preset=max", "--metok-stages", "[1, 2]", "--metok-decode-keep", "null"],
        ["--metok-enabled", "on", "--metok-key-frames-per-event=4"],
        ["--additional-config", '{"metok": {"num_events": 7, "keep_ratio": 0.3}}'],
        ["--additional-config", '{"metok": {"num_events": 7}}', "--metok-num-events", "2"],
        ["--metok-config", "FILE", "--metok-rule", "evs"],
        ["--metok-config=FILE", "--metok-presets", '{"max": {"keep_ratio": 0.2}}'],
    ],
)
def test_settings_are_those_that_metok_serve_reads(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text("keep_ratio: 0.9\nnum_events: 3\npresets: {max: {keep_ratio: 0.4}}\n")
    monkeypatch.setenv("METOK_NUM_EVENTS", "4")
    words = [word.replace("FILE", str(file)) for word in words]
    found = served_config(words)
    assert found is not None
    served = parse(["model", *words]).additional_config["metok"]
    assert found == METokConfig.from_dict(served)


def test_settings_that_only_vllm_can_read_are_not_known() -> None:
    assert served_config(["--config", "vllm.yaml"]) is None
    assert served_config(["--additional-config.metok.keep_ratio=0.5"]) is None
    with pytest.raises(ConfigError, match="--additional-config must be a JSON object, got 'x'"):
        served_config(["--additional-config", "x"])


def test_the_demo_has_its_own_file_and_others_have_what_is_given(tmp_path: Path) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text("num_events: 3\npruning_layers: [3, 6, 9]\n")
    demo = Source(checkpoint="demo")
    assert demo.config() == METokConfig.load(config_file=CONFIG_FILE, environ={})
    assert demo.metok_words == ("--metok-config", str(CONFIG_FILE))
    assert not demo.has_own_config
    for own in (
        Source(checkpoint="demo", config_file=file),
        Source(checkpoint="demo", flags=("--metok-config", str(file))),
        Source(model="x", metok_flags=(f"--metok-config={file}",)),
        Source(base_url="http://localhost:1", config_file=file),
    ):
        config = own.config()
        assert config is not None
        assert (config.num_events, own.has_own_config) == (3, True)
        assert str(CONFIG_FILE) not in own.metok_words
    assert Source(model="x").config() == METokConfig()
    qwen = Source(checkpoint="qwen3-vl-8b").config()
    assert qwen is not None
    assert qwen.key_frames_per_event == 0.25
    assert Source(base_url="http://localhost:1").config() is None


def test_a_running_server_has_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text("num_events: 3\n")
    monkeypatch.setenv("METOK_NUM_EVENTS", "4")
    running = Source(base_url="http://localhost:1", config_file=file).config()
    ours = Source(model="x", config_file=file).config()
    assert running is not None
    assert ours is not None
    assert (running.num_events, ours.num_events) == (3, 4)


def test_the_last_flag_counts_in_either_spelling() -> None:
    words = ["--dtype", "half", "--kv_cache_dtype=fp8", "--dtype=float32"]
    assert flag_value(words, "--dtype") == "float32"
    assert flag_value(words, "--kv-cache-dtype") == "fp8"
    assert flag_value(words, "--block-size") is None
    assert flag_value([], "--dtype") is None
    assert flag_value(["--dtype"], "--dtype") is None


@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "value_bytes"),
    [
        ("auto", "auto", 2),  # though the checkpoint is in single precision
        ("float32", "auto", 4),
        ("half", "auto", 2),
        ("float32", "fp8", 1),
        ("bfloat16", "fp8_e5m2", 1),
        ("float32", "bfloat16", 2),
    ],
)
def test_bytes_are_those_that_vllm_stores(dtype: str, cache_dtype: str, value_bytes: int) -> None:
    single = Geometry.of_model(str(MODEL_DIR), "float32")
    found = Geometry.of_model(str(MODEL_DIR), dtype, cache_dtype)
    assert found == dataclasses.replace(single, value_bytes=value_bytes)
