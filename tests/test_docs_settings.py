"""The tables of docs/settings.md say what the settings are and what the engine does with them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.config.families import KEY_FRAME_SHARES
from metok_vllm.config.presets import PRESETS
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.plan.accounting import decoder_prefill_flops
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning
from metok_vllm.server.settings import ServerSettings
from metok_vllm.video.limits import MediaLimits
from tests.layouts import square

SETTINGS = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
NAMES = ("quality", "balanced", "max")
TEXT = 60
# LLaVA-OneVision-7B: SigLIP-SO400M at 384 pixels before a Qwen2-7B.
GRID = 27
QWEN2_7B = SimpleNamespace(
    hidden_size=3584,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    num_hidden_layers=28,
)


def test_visual_tokens_of_the_embedded_model() -> None:
    rows = re.findall(
        r"^\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", SETTINGS, re.MULTILINE
    )
    assert len(rows) == 4
    served = METokConfig.load(config_file=CONFIG_FILE, environ={})
    for frames, *counts in rows:
        wanted = [
            f"{square(int(frames), 8).tokens(served.for_request({'preset': name})):,}"
            for name in ("off", *NAMES)
        ]
        assert counts == wanted
    assert set(PRESETS) == {"off", *NAMES}


def test_what_the_presets_save_at_7b_sizes() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| (.* KV .*) \|$", SETTINGS, re.MULTILINE)
    assert [int(frames) for frames, _, _ in rows] == [32, 64, 128]
    for frames, dense, cells in rows:
        off = METokConfig.load(environ={}).for_request({"preset": "off"})
        assert dense == f"{square(int(frames), GRID).tokens(off):,}"
        assert cells.split(" | ") == [_saved(int(frames), name) for name in NAMES]


def test_the_shares_of_families_with_temporal_patches() -> None:
    for shares in KEY_FRAME_SHARES.values():
        first, second, third = (shares[name] for name in NAMES)
        counts = [METokConfig.from_dict({"preset": n}).key_frames_per_event for n in NAMES]
        text = f"{first:g}, {second:g} and {third:g} for `key_frames_per_event`, in place of "
        wanted = text + "{}, {} and {}: shares".format(*counts)
        assert wanted in " ".join(SETTINGS.split())


def _saved(frames: int, preset: str) -> str:
    """Tokens, and shares of dense, from the plan that scheduler and workers make."""
    config = METokConfig.load(environ={}).for_request({"preset": preset})
    dense = square(frames, GRID).tokens(config.for_request({"preset": "off"}))
    tokens = square(frames, GRID).tokens(config)
    layout = StageLayout.of(None, QWEN2_7B.num_hidden_layers)
    pruning = Pruning.of(config, square(frames, GRID).key_share(config))
    prompt = tokens + TEXT
    plan = PromptPlan.of(prompt, [("video", 20, tokens, pruning)])
    assert plan is not None
    flops = decoder_prefill_flops(QWEN2_7B, prompt, layout, plan)
    flops_share = flops / decoder_prefill_flops(QWEN2_7B, dense + TEXT)
    held = sum(
        layers * (prompt - dropped)
        for layers, dropped in zip(layout.stage_sizes, plan.decode_dropped, strict=True)
    )
    kv_share = held / (QWEN2_7B.num_hidden_layers * (dense + TEXT))
    return f"{tokens:,}, FLOPs {flops_share:.1%}, KV {kv_share:.1%}".replace("%", " %")


@pytest.mark.parametrize(
    ("cls", "flags"),
    [(METokConfig, "--metok-"), (MediaLimits, "--metok-media-"), (ServerSettings, "--metok-")],
)
def test_every_setting_has_its_row_with_its_default(cls: type[Any], flags: str) -> None:
    for field in dataclasses.fields(cls):
        name = field.name
        if cls is not METokConfig:
            name = flags + name.removesuffix("_s" if cls is ServerSettings else "").replace(
                "_", "-"
            )
        default = str(field.default) if isinstance(field.default, str) else _shown(field.default)
        assert re.search(
            rf"^\| `{re.escape(name)}` \| `?{re.escape(default)}`? \|", SETTINGS, re.MULTILINE
        ), f"docs/settings.md has no row for {name} with default {default}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:,g}" if value < 10**6 else f"{value:,}"
