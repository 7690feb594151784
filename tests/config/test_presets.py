"""Presets with a server's own values: what they change, and which are refused at start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.config import METokConfig
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
