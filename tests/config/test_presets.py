"""Presets with a server's own values: what they change, and which are refused at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.config.families import STATEFUL
from metok_vllm.errors import ConfigError


def test_a_servers_own_presets_come_before_the_papers(tmp_path: Path) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text(
        "pruning_layers: [3, 6, 9]\n"
        "presets:\n  balanced: {keep_ratio: 0.9}\n  max: {decode_keep: 0.5, stages: [2, 3]}\n"
    )
    server = METokConfig.load(config_file=file, environ={})
    assert (server.preset, server.keep_ratio, server.pruning_layers) == ("balanced", 0.9, (3, 6, 9))
    assert METokConfig.from_dict(server.to_dict()) == server
    config = server.for_request({"preset": "max"})
    assert (config.decode_keep, config.keep_ratio, config.stages) == (0.5, 0.76, (2, 3))
    # A preset without values of its own is the paper's.
    assert server.for_request({"preset": "quality"}).key_frames_per_event == 8
    explicit = METokConfig.load({"keep_ratio": 0.6}, file, environ={})
    assert explicit.keep_ratio == 0.6
    assert METokConfig.load({"preset": "max"}, file, environ={}).decode_keep == 0.5
    with pytest.raises(ConfigError, match="fixed when the server starts"):
        server.for_request({"presets": {}})


@pytest.mark.parametrize(
    ("presets", "message"),
    [
        ([], r"must map quality, balanced, max to their values, got \[\]"),
        ({"max": 3}, "must map quality, balanced, max"),
        ({"fast": {}}, "may have quality, balanced, max; got 'fast'"),
        ({"off": {}}, "may have quality, balanced, max; got 'off'"),
        ({"max": {"pruning_layers": [1, 2, 3]}}, "got 'pruning_layers'"),
        ({"max": {"keep_ratio": 2}}, r"keep_ratio must be in \(0, 1\], got 2"),
    ],
)
def test_presets_are_checked(presets: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        METokConfig.from_dict({"presets": presets})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"stages": [2, 3], "presets": {"max": {"stages": [1, 2]}}},
            r"presets\.max cannot be used: metok\.stages \[1, 2\] .* runs stages \[2, 3\]",
        ),
        (
            {"presets": {"quality": {"rule_keep": 0.5}}},
            r"presets\.quality cannot be used: metok\.rule_keep 0\.5 needs another rule",
        ),
        (
            # A request that names a preset does not get the rule that the server starts with.
            {"rule": "evs", "presets": {"max": {"rule_keep": 0.5}}},
            "presets.max cannot be used: metok.rule_keep",
        ),
        (
            {"stages": [1], "presets": {"max": {"rule": "fastv"}}},
            "presets.max cannot be used: metok.rule 'fastv' needs stage 2",
        ),
    ],
)
def test_presets_that_no_request_could_use_are_refused_at_start(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "metok.yaml"
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message) as caught:
        METokConfig.load(config_file=file, environ={})
    assert caught.value.field == "presets"


def test_presets_that_a_request_can_use_start_a_server() -> None:
    """What a preset does not set is the default where a request names it, not the server's."""
    server = METokConfig.from_dict({"rule": "fastv", "presets": {"max": {"stages": [1, 3]}}})
    config = server.for_request({"preset": "max"})
    assert (config.rule, config.stages) == ("metok", (1, 3))
    presets = {"max": {"rule": "evs", "rule_keep": 0.5}, "quality": {"keep_ratio": 0.9}}
    encoder = METokConfig.from_dict({"stages": [1], "presets": presets})
    for name in presets:
        assert encoder.for_request({"preset": name}).preset == name
    assert encoder.for_request({"preset": "max"}).rule_keep == 0.5


class TestFamilies:
    """Presets of families whose frames are temporal patches, by `model_type`."""

    def served(self, *, family: str | None = "qwen3_vl", **values: Any) -> METokConfig:
        return METokConfig.load(values, environ={}, family=family)

    def test_key_frames_are_a_share(self) -> None:
        server = self.served()
        assert (server.preset, server.key_frames_per_event) == ("balanced", 0.25)
        assert METokConfig.from_dict(server.to_dict()) == server
        by_name = {"quality": (0.5, 0.9), "balanced": (0.25, 0.76), "max": (0.1, 0.5)}
        for name, (share, keep) in by_name.items():
            request = server.for_request({"preset": name})
            assert (request.key_frames_per_event, request.keep_ratio) == (share, keep)
            started = self.served(preset=name)
            assert (started.key_frames_per_event, started.keep_ratio) == (share, keep)

    def test_others_keep_the_papers_count(self) -> None:
        for family in ("llava_onevision", None):
            assert self.served(family=family) == METokConfig()

    def test_what_is_given_comes_first(self) -> None:
        server = self.served(key_frames_per_event=3, preset="max")
        assert server.key_frames_per_event == 3
        assert server.for_request({"key_frames_per_event": 4}).key_frames_per_event == 4
        # A request's preset sets everything that the request leaves open, as everywhere.
        assert server.for_request({"preset": "max"}).key_frames_per_event == 0.1

    def test_a_servers_own_presets(self) -> None:
        own = {"max": {"decode_keep": 0.5}, "quality": {"key_frames_per_event": 7}}
        server = self.served(presets=own)
        request = server.for_request({"preset": "max"})
        # The rest of an own preset is the default, not the paper's `max`.
        assert (request.decode_keep, request.keep_ratio) == (0.5, 0.76)
        assert request.key_frames_per_event == 0.1
        assert server.for_request({"preset": "quality"}).key_frames_per_event == 7
        assert server.for_request({"preset": "balanced"}).key_frames_per_event == 0.25
        with pytest.raises(ConfigError, match="must map quality, balanced, max"):
            self.served(presets={"max": 3})

    def test_a_server_that_is_off(self) -> None:
        request = self.served(preset="off").for_request({"enabled": True})
        assert (request.preset, request.key_frames_per_event) == ("balanced", 0.25)

    def test_given_values_are_completed_later(self, tmp_path: Path) -> None:
        """`metok serve` reads files and flags, vLLM's hook knows the family."""
        file = tmp_path / "metok.yaml"
        file.write_text("num_events: 3\npreset: max\n")
        given = METokConfig.given({"strides": (4, 8, 16)}, file, environ={})
        assert given == {"num_events": 3, "preset": "max", "strides": [4, 8, 16]}
        server = self.served(**given)
        assert (server.num_events, server.key_frames_per_event) == (3, 0.1)
        with pytest.raises(ConfigError, match="num_events"):
            METokConfig.given({"num_events": 0}, environ={})

    @pytest.mark.parametrize("family", sorted(STATEFUL))
    def test_a_decoder_with_states_runs_stage_1(self, family: str) -> None:
        """Also with a preset of the paper, which has values for stages 2 and 3."""
        server = self.served(family=family, preset="max")
        assert server.stages == (1,)
        assert METokConfig.from_dict(server.to_dict()) == server
        assert server.for_request({"preset": "quality"}).stages == (1,)
        with pytest.raises(ConfigError, match=r"this server runs stages \[1\]"):
            server.for_request({"stages": [1, 2]})
        with pytest.raises(ConfigError, match="'fastv' needs stage 2"):
            server.for_request({"rule": "fastv"})
        # What the user chose is kept, for the engine to refuse.
        assert self.served(family=family, stages=(1, 3)).stages == (1, 3)
