"""METokConfig: accepted and refused values, and the priority of their sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metok_vllm.config import REQUEST_FIELDS, METokConfig
from metok_vllm.config.presets import PRESETS
from metok_vllm.errors import ConfigError


def test_layers_rise_from_file_to_environment_to_flags(tmp_path: Path) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text("num_events: 7\nkey_event_ratio: 0.5\nstrides: [2, 3, 4]\n")
    environ = {"METOK_KEY_EVENT_RATIO": "0.25", "METOK_ALIGNMENT_MODEL": "a/b", "METOK_OTHER": "x"}
    config = METokConfig.load({"alignment_mode": "none"}, file, environ)
    assert config.num_events == 7
    assert config.key_event_ratio == 0.25
    assert config.strides == (2, 3, 4)
    assert config.alignment_model == "a/b"
    assert config.alignment_mode == "none"


def test_fields_override_a_preset() -> None:
    config = METokConfig.load({"preset": "max", "key_frames_per_event": 4}, environ={})
    assert config.key_event_ratio == PRESETS["max"]["key_event_ratio"]
    assert config.key_frames_per_event == 4


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_valid_and_serialise(preset: str) -> None:
    config = METokConfig.from_dict({"preset": preset})
    assert METokConfig.from_dict(config.to_dict()) == config


def test_off_is_off_and_a_request_may_switch_on() -> None:
    server = METokConfig.from_dict({"preset": "off"})
    assert not server.enabled
    assert server.for_request({"enabled": True}).enabled
    assert server.for_request({"preset": "balanced"}).enabled


def test_a_preset_in_a_request_replaces_request_fields_only() -> None:
    server = METokConfig.from_dict(
        {"num_events": 9, "key_event_ratio": 1.0, "encoder_chunk_frames": 3}
    )
    config = server.for_request({"preset": "max"})
    assert (config.num_events, config.key_event_ratio) == (5, 0.4)
    assert config.encoder_chunk_frames == 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"nonsense": 1}, "nonsense"),
    ({"preset": "fast"}, "preset"),
    ({"enabled": "yes"}, "enabled"),
    ({"stages": [1, 4]}, "stages"),
    ({"stages": 1}, "stages"),
    ({"num_events": 0}, "num_events"),
    ({"num_events": 2.5}, "num_events"),
    ({"num_events": True}, "num_events"),
    ({"key_event_ratio": 0}, "key_event_ratio"),
    ({"key_event_ratio": 1.1}, "key_event_ratio"),
    ({"key_event_ratio": float("nan")}, "key_event_ratio"),
    ({"key_frames_per_event": 0}, "key_frames_per_event"),
    ({"key_frames_per_event": 1.5}, "key_frames_per_event"),
    ({"strides": [4, 2, 8]}, "strides"),
    ({"strides": [1, 2, 4]}, "strides"),
    ({"strides": [2, 4, 65]}, "strides"),
    ({"reduce": "average"}, "reduce"),
    ({"reduce": 2}, "reduce"),
    ({"evict_after": -1}, "evict_after"),
    ({"evict_after": 1.5}, "evict_after"),
    ({"focus": "answer"}, "focus"),
    ({"focus": ["turn"]}, "focus"),
    ({"focus_text": " "}, "focus_text"),
    ({"focus_text": 7}, "focus_text"),
    ({"num_events": 10**30}, "num_events"),
    ({"key_frames_per_event": 10**30}, "key_frames_per_event"),
    ({"encoder_chunk_frames": 10**30}, "encoder_chunk_frames"),
    ({"key_event_ratio": float("inf")}, "key_event_ratio"),
    ({"strides": [2, 4]}, "strides"),
    ({"pruning_layers": [3, 3, 5]}, "pruning_layers"),
    ({"pruning_layers": "3"}, "pruning_layers"),
    ({"keep_ratio": 0}, "keep_ratio"),
    ({"decode_keep": -0.1}, "decode_keep"),
    ({"rule": "evss"}, "rule"),
    ({"rule": 1}, "rule"),
    ({"rule": None}, "rule"),
    ({"rule_keep": 0}, "rule_keep"),
    ({"rule_keep": 1.01}, "rule_keep"),
    ({"rule_keep": "0.5"}, "rule_keep"),
    ({"rule_keep": True}, "rule_keep"),
    ({"rule_keep": float("nan")}, "rule_keep"),
    ({"alignment_mode": "maybe"}, "alignment_mode"),
    ({"alignment_model": 3}, "alignment_model"),
    ({"feature_cache_bytes": -1}, "feature_cache_bytes"),
    ({"encoder_chunk_frames": 0}, "encoder_chunk_frames"),
]


@pytest.mark.parametrize(("values", "field"), BAD)
def test_invalid_values_are_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"metok.{field}") as caught:
        METokConfig.from_dict(values)
    assert caught.value.field == field
    offending = values[field]
    assert field == "nonsense" or repr(offending).strip("[]") in str(caught.value)


def test_a_long_text_is_refused_in_few_words() -> None:
    with pytest.raises(ConfigError, match="at most 1024 characters") as error:
        METokConfig(focus_text="a" * 1025)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("field", sorted(set(METokConfig.__dataclass_fields__) - REQUEST_FIELDS))
def test_server_fields_are_refused_in_a_request(field: str) -> None:
    config = METokConfig()
    with pytest.raises(ConfigError, match="fixed when the server starts") as caught:
        config.for_request({field: getattr(config, field)})
    assert caught.value.field == field


def test_all_stages_run_unless_the_server_says_otherwise() -> None:
    assert METokConfig().stages == (1, 2, 3)
    assert METokConfig.load(environ={"METOK_STAGES": "[1]"}).stages == (1,)


def test_presets_say_how_much_the_decoder_keeps() -> None:
    keeps = {name: METokConfig.from_dict({"preset": name}).keep_ratio for name in PRESETS}
    assert keeps["quality"] > keeps["balanced"] > keeps["max"]
    assert METokConfig.from_dict({"preset": "quality"}).decode_keep > METokConfig().decode_keep


def test_a_request_cannot_add_stages() -> None:
    server = METokConfig(stages=(1,))
    with pytest.raises(ConfigError, match="needs stage 3"):
        server.for_request({"decode_keep": 0.5})
    with pytest.raises(ConfigError, match="needs stage 2"):
        server.for_request({"keep_ratio": 0.5})
    with pytest.raises(ConfigError, match=r"server runs stages \[1\]") as caught:
        server.for_request({"stages": [1, 2]})
    assert caught.value.field == "stages"
    config = METokConfig().for_request({"decode_keep": 0.5, "keep_ratio": 0.4})
    assert (config.decode_keep, config.keep_ratio) == (0.5, 0.4)


def test_a_setting_of_a_stage_that_the_request_leaves_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs stage 2"):
        METokConfig().for_request({"stages": [1, 3], "keep_ratio": 0.5})


def test_a_request_may_leave_stages_out() -> None:
    assert METokConfig().for_request({"stages": [1, 3]}).stages == (1, 3)
    assert METokConfig(stages=(1, 3)).for_request({"preset": "max"}).stages == (1, 3)
    for stages in ("1", ["1"], [[1]], 1):
        with pytest.raises(ConfigError, match=r"metok\.stages"):
            METokConfig().for_request({"stages": stages})


def test_a_request_may_choose_another_rule() -> None:
    server = METokConfig.load({"rule_keep": 0.1}, environ={"METOK_RULE": "evs"})
    assert (server.rule, server.rule_keep, server.running_stages) == ("evs", 0.1, ())
    assert METokConfig().for_request({"rule": "random", "rule_keep": 1}).encoder_rule
    assert server.for_request({"rule_keep": 0.4}).rule_keep == 0.4
    back = server.for_request({"rule": "metok"})
    assert (back.encoder_rule, back.running_stages) == (False, (1, 2, 3))
    assert server.for_request({"preset": "max"}).rule == "metok"
    off = server.for_request({"enabled": False})
    assert (off.compresses, off.encoder_rule, off.running_stages) == (False, False, ())


def test_the_stages_of_a_request_do_not_matter_to_a_rule_in_the_encoder() -> None:
    config = METokConfig(stages=(1,)).for_request({"rule": "vidcom2", "stages": []})
    assert config.compresses
    assert not METokConfig().for_request({"stages": []}).compresses


def test_rule_keep_needs_another_rule() -> None:
    for server in (METokConfig(), METokConfig(rule_keep=0.5)):
        for values in ({"rule_keep": 0.5}, {"rule": "metok", "rule_keep": 0.5}):
            with pytest.raises(ConfigError, match=r"rule_keep 0\.5 needs another rule") as caught:
                server.for_request(values)
            assert caught.value.field == "rule_keep"


def test_fastv_works_where_stage_2_does() -> None:
    assert METokConfig(stages=(2,)).for_request({"rule": "fastv"}).compresses
    for server, values in (
        (METokConfig(stages=(1,)), {"rule": "fastv"}),
        (METokConfig(), {"rule": "fastv", "stages": [1, 3]}),
    ):
        with pytest.raises(ConfigError, match="'fastv' needs stage 2") as caught:
            server.for_request(values)
        assert caught.value.field == "rule"
    with pytest.raises(ConfigError, match="'fastv' needs stage 2"):
        METokConfig.load({"rule": "fastv", "stages": [3]}, environ={})


def test_off_and_on_at_once_is_refused_and_names_are_never_mixed_up() -> None:
    with pytest.raises(ConfigError, match="contradicts"):
        METokConfig().for_request({"preset": "off", "enabled": True})
    on = METokConfig.from_dict({"preset": "off"}).for_request({"enabled": True})
    assert on == METokConfig()


@pytest.mark.parametrize(
    "values", [{"preset": "x" * 10**6}, {"x" * 10**6: 1}, {"stages": "y" * 10**6}]
)
def test_messages_do_not_echo_the_payload(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        METokConfig().updated(values)
    assert len(str(caught.value)) < 500
    assert len(str(caught.value.field)) < 100


@pytest.mark.parametrize("content", ["- 1", "a: [", "text"])
def test_a_file_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="configuration file"):
        METokConfig.load(config_file=file, environ={})


class TestConfigFile:
    """A file that `additional_config["metok"]` names, for engines without a command line."""

    FILE = "preset: max\nnum_events: 7\nkeep_ratio: 0.5\n"

    def file(self, folder: Path, text: str = FILE) -> str:
        path = folder / "metok.yaml"
        path.write_text(text)
        return str(path)

    def test_explicit_values_win_over_the_file_and_the_environment(self, tmp_path: Path) -> None:
        given = {"config_file": self.file(tmp_path), "num_events": 9, "alignment_model": "a"}
        environ = {"METOK_KEEP_RATIO": "0.25", "METOK_NUM_EVENTS": "3"}
        config = METokConfig.load(given, environ=environ)
        assert (config.num_events, config.keep_ratio, config.preset) == (9, 0.25, "max")
        assert config.key_event_ratio == METokConfig.from_dict({"preset": "max"}).key_event_ratio
        assert config.alignment_model == "a"
        assert "config_file" not in config.to_dict()

    @pytest.mark.parametrize("value", [7, ["a.yaml"], True, {}])
    def test_a_value_that_is_no_path(self, value: Any) -> None:
        with pytest.raises(ConfigError, match=r"metok\.config_file must be the path") as caught:
            METokConfig.load({"config_file": value})
        assert caught.value.field == "config_file"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (None, "cannot read"),
            ("a: [", "cannot read"),
            ("- 1", "must hold a mapping"),
            ("num_event: 3", "metok.num_event is not a known field"),
            ("num_events: 0", "metok.num_events must be"),
            ("config_file: b.yaml", "metok.config_file is not a known field"),
        ],
    )
    def test_errors_are_named(self, tmp_path: Path, text: str | None, words: str) -> None:
        path = str(tmp_path / "no.yaml") if text is None else self.file(tmp_path, text)
        with pytest.raises(ConfigError, match=words) as caught:
            METokConfig.load({"config_file": path})
        assert caught.value.field is not None

    def test_a_request_cannot_name_a_file(self) -> None:
        with pytest.raises(ConfigError, match=r"metok\.config_file is not a known field"):
            METokConfig().for_request({"config_file": "a.yaml"})
