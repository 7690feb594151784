"""The tables of published sizes follow from the calculation, and that from measured rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlavaOnevisionConfig

from metok_vllm.benchmarks.throughput.checkpoints import model_config
from metok_vllm.benchmarks.throughput.published_costs import (
    CONFIGS,
    costs,
    published_config,
    readme_row,
    row,
    video_cost,
)
from metok_vllm.benchmarks.throughput.sizes import SIZES
from metok_vllm.config import METokConfig
from metok_vllm.plan.layout import AVERAGE

ROOT = Path(__file__).parents[3]
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_documents_have_these_rows() -> None:
    found = costs()
    assert list(found) == list(CONFIGS)
    for name, of_model in found.items():
        assert readme_row(name, of_model) in README
        for cost in of_model:
            assert row(name, cost) in MODELS


@pytest.mark.parametrize("layers", [None, (3, 10, 19)])
def test_longva_s_rows_are_those_that_the_engine_measured(
    layers: tuple[int, int, int] | None,
) -> None:
    """tests/engine/test_staged_memory.py counts the rows of docs/models.md in the engine."""
    published = model_config(replace(SIZES["longva-7b"], tied=False))
    longva = LlavaOnevisionConfig.from_dict(published)
    longva.mm_newline_position, longva.mm_spatial_pool_mode = "no_token", AVERAGE
    cost = video_cost(longva, 128, METokConfig(pruning_layers=layers))
    line = next(line for line in MODELS.splitlines() if line.startswith("| dense | |"))
    mib = cost.block_bytes / 2**20
    assert f"| {cost.dense_rows:,} | {cost.dense_flops / 1e12:.1f} T |" in line
    assert f"| {cost.dense_blocks:,} | {cost.dense_blocks * mib:,.1f} MiB |" in line
    start = "| default |" if layers is None else "| paper |"
    line = next(line for line in MODELS.splitlines() if line.startswith(start))
    assert f"| {cost.rows:,} | {cost.flops / 1e12:.1f} T |" in line
    assert f"| {cost.blocks:,} | {cost.blocks * mib:.1f} MiB |" in line


def test_qwen3_vl_by_hand() -> None:
    """64 frames of 14 x 25 features in 32 patches, of which six are fine: two in each key event."""
    config = published_config("Qwen3-VL-8B")
    metok = METokConfig.load(environ={}, family="qwen3_vl")
    cost = video_cost(config, 64, metok)
    stamps = 10 * 8 + 22 * 9
    # 3 * 2 fine; 3 * 4.4 and 2 * 2 medium make 17; nine coarse.
    assert cost.tokens == 6 * 350 + 17 * 91 + 9 * 28 + stamps
    # Stages of 6, 6, 12 and 12 layers; in the last one text and timestamps alone.
    key = 3 * (2 * 350 + 4.4 * 91) / (3 * (2 * 350 + 4.4 * 91) + 2 * (2 * 91 + 4.4 * 28))
    visual, text = cost.tokens - stamps, 60 + stamps
    first, second = 0.76 * (1 + key) / 2 * visual, 0.76**2 * key * visual
    by_hand = 6 * (visual + text) + 6 * (first + text) + 12 * (second + text) + 12 * text
    assert cost.rows == pytest.approx(by_hand, abs=18)
