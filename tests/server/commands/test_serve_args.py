from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR
from metok_vllm.server.commands import serve_args
from metok_vllm.server.commands.serve_args import parse
from metok_vllm.video.limits import MediaLimits
from tests.layouts import square


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ, "VLLM_CPU_KVCACHE_SPACE"]:
        if name.startswith(("METOK_", "VLLM_CPU")):
            monkeypatch.delenv(name, raising=False)
    # parse writes to the environment; monkeypatch puts back what it has touched.
    for name in (
        "METOK_MEDIA_ALLOW_PRIVATE_HOSTS",
        "METOK_MEDIA_MAX_VIDEOS",
        "METOK_SERVER_MAX_INFLIGHT",
        "VLLM_CPU_KVCACHE_SPACE",
    ):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def test_every_vllm_flag_is_taken() -> None:
    args = parse(
        ["some/model", "--max-model-len", "2k", "--tensor_parallel_size=2", "--api-key", "k"]
    )
    assert args.model == "some/model"
    assert (args.max_model_len, args.tensor_parallel_size, args.api_key) == (2000, 2, ["k"])
    assert not [name for name in vars(args) if name.startswith("metok")]


def test_metok_settings_travel_in_additional_config() -> None:
    args = parse(
        [
            "m",
            "--metok-preset",
            "max",
            "--metok-strides",
            "[4, 8, 16]",
            "--metok-enabled",
            "false",
            "--additional-config",
            '{"other": 1, "metok": {"num_events": 7, "preset": "quality"}}',
        ]
    )
    metok = args.additional_config["metok"]
    assert args.additional_config["other"] == 1
    # What was given, for vLLM's hook to complete with presets of the model's family.
    assert metok == {"num_events": 7, "preset": "max", "strides": [4, 8, 16], "enabled": False}
    assert METokConfig.from_dict(metok).key_event_ratio == 0.4


def test_settings_rise_from_file_over_environment_to_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metok.yaml"
    path.write_text("num_events: 2\nkey_event_ratio: 0.5\nkeep_ratio: 0.9\n")
    monkeypatch.setenv("METOK_NUM_EVENTS", "3")
    monkeypatch.setenv("METOK_KEY_EVENT_RATIO", "0.7")
    args = parse(["m", "--metok-config", str(path), "--metok-num-events", "4"])
    metok = args.additional_config["metok"]
    assert (metok["num_events"], metok["key_event_ratio"], metok["keep_ratio"]) == (4, 0.7, 0.9)


@pytest.mark.parametrize(
    ("words", "events"), [([], 6), (["--metok-config", "flag.yaml"], 2), (["--demo"], 6)]
)
def test_a_file_may_be_named_among_the_settings(
    words: list[str], events: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flag.yaml").write_text("num_events: 2\n")
    Path("named.yaml").write_text("num_events: 6\nkeep_ratio: 0.5\n")
    extra = '{"metok": {"config_file": "named.yaml", "key_event_ratio": 0.9}}'
    model = [] if "--demo" in words else ["m"]
    metok = parse([*model, "--additional-config", extra, *words]).additional_config["metok"]
    assert (metok["num_events"], metok["key_event_ratio"]) == (events, 0.9)
    assert "config_file" not in metok


def test_limits_go_to_the_environment() -> None:
    args = parse(["m", "--metok-media-max-videos", "3", "--metok-max-inflight", "9"])
    assert os.environ["METOK_MEDIA_MAX_VIDEOS"] == "3"
    assert os.environ["METOK_SERVER_MAX_INFLIGHT"] == "9"
    assert args.limit_mm_per_prompt == {"video": 3}


def test_limits_of_the_user_stay() -> None:
    args = parse(["m", "--limit-mm-per-prompt", '{"image": 2, "video": 1}'])
    assert args.limit_mm_per_prompt == {"image": 2, "video": 1}


@pytest.mark.parametrize("joined", [False, True])
def test_a_config_file_of_vllm_may_name_the_model(tmp_path: Path, joined: bool) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("model: some/model\nport: 9001\nmetok-num-events: 4\n")
    words = [f"--config={path}"] if joined else ["--config", str(path)]
    args = parse([*words, "--api-key", "k"])
    assert (args.model, args.port, args.api_key) == ("some/model", 9001, ["k"])
    assert args.additional_config["metok"]["num_events"] == 4


def test_the_demo() -> None:
    args = parse(["--demo", "--port", "9000"])
    assert (args.model, args.port) == (str(MODEL_DIR), 9000)
    assert (args.served_model_name, args.dtype, args.enforce_eager) == (
        ["metok-demo"],
        "float32",
        True,
    )
    assert args.max_num_batched_tokens > square(MediaLimits().max_frames, 14).dense_tokens()
    assert args.block_size == 32
    assert METokConfig.load(args.additional_config["metok"]).stages == (1, 2, 3)
    assert args.additional_config["metok"]["alignment_model"] == str(ALIGNMENT_DIR)
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"]


def test_flags_override_the_demo_s_defaults() -> None:
    flags = ["--served-model-name", "mine", "--dtype", "bfloat16", "--max-model-len", "512"]
    args = parse(["--demo", *flags, "--metok-alignment-model", "some/towers"])
    assert (args.served_model_name, args.dtype, args.max_model_len) == (["mine"], "bfloat16", 512)
    assert args.additional_config["metok"]["alignment_model"] == "some/towers"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which model"),
        (["m", "--metok-num-events", "0"], "num_events"),
        (["m", "--metok-preset", "best"], "preset"),
        (["m", "--metok-enabled", "maybe"], "--metok-enabled must be true or false"),
        (["m", "--metok-num-events", "2.5"], "--metok-num-events must be an integer"),
        (["m", "--metok-media-allow-private-hosts", "ture"], "'ture' needs a port"),
        (["m", "--metok-media-max-videos", "many"], "METOK_MEDIA_MAX_VIDEOS"),
        (["m", "--metok-max-inflight", "-3"], "max_inflight"),
        (["m", "--metok-config", "missing.yaml"], "configuration file"),
        (["m", "--metok-unknown", "1"], "unrecognized"),
    ],
)
def test_a_bad_command_line_ends_with_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "enabled"), [("on", True), ("No", False), ("1", True)])
def test_flags_are_read_like_the_environment(text: str, enabled: bool) -> None:
    assert parse(["m", "--metok-enabled", text]).additional_config["metok"]["enabled"] is enabled


def test_likely_mistakes_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serve_args.logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    monkeypatch.setenv("METOK_KERNELS", "torch")
    parse(["m", "--metok-media-allow-private-hosts", "10.0.0.1:80"])
    assert not caplog.records
    monkeypatch.setenv("METOK_MEDIA_MAX_VIDEO", "a secret")
    parse(["m", "--metok-media-allow-private-hosts", "true"])
    messages = dict.fromkeys(record.getMessage() for record in caplog.records)
    mistyped, opened = messages
    assert "METOK_MEDIA_MAX_VIDEO " in mistyped
    assert "METOK_MEDIA_MAX_VIDEOS is meant" in mistyped
    assert "secret" not in mistyped
    assert "every port" in opened
