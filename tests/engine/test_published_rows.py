"""Rows and KV blocks of Qwen's published geometries are those of the table in docs/models.md.

Layers, frames and their grid are the published models', widths are tiny. Rows are counted by hooks
on the layers and blocks in the scheduler. The tests' tokenizer writes times in other tokens than
Qwen's, so that the calculation is compared on the layout of the request itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metok_vllm.benchmarks.throughput.published_costs import (
    published_config,
    video_cost,
)
from metok_vllm.config import METokConfig
from metok_vllm.models.request import FIELD, read_layout
from metok_vllm.plan.families import deepstack_levels, video_layout
from metok_vllm.plan.layers import StageLayout
from tests.engine.engines import SMALL_DUMMIES, EnginePool, render
from tests.engine.staged import StagedEngine
from tests.engine.staged_prompts import QWEN, Clip, make_prompt
from tests.reference.decoder import LanguageModel
from tests.reference.qwen_vl_checkpoint import write_checkpoint
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(600)]

SIZE, MAX_LEN = (448, 798), 32768
SETTINGS: dict[str, Any] = {
    "max_model_len": MAX_LEN,
    "max_num_batched_tokens": 8192,
    "enable_prefix_caching": False,
    "limit_mm_per_prompt": {"image": 0, "video": {"count": 1, **SMALL_DUMMIES}},
}


@pytest.mark.parametrize(
    ("name", "family", "frames"),
    [
        ("Qwen2.5-VL-7B", QWEN2_5_VL, 64),
        ("Qwen3-VL-8B", QWEN3_VL, 64),
        ("Qwen3-VL-30B-A3B", QWEN3_VL_MOE, 64),
    ],
)
def test_rows_and_blocks_are_the_table_s(
    name: str,
    family: str,
    frames: int,
    engines: EnginePool,
    staged_reference: LanguageModel,
    tmp_path: Path,
) -> None:
    config = published_config(name)
    layers = config.text_config.num_hidden_layers
    layout = StageLayout.of(None, layers, max(deepstack_levels(config), 1))
    write_checkpoint(tmp_path / "model", family, layers=layers)
    without_pixel_limits(tmp_path / "model")
    engine = StagedEngine(
        engines,
        tmp_path / "model",
        staged_reference,
        layout.boundaries,
        num_gpu_blocks_override=layout.num_groups * 1100,
        **SETTINGS,
    )
    patches = frames // QWEN.temporal
    prompt = make_prompt((20, Clip(8, (10, 12, patches - 22), SIZE, 2.0), 30), {}, media=QWEN)
    inputs = render(engine.llm, prompt)
    video = read_layout(inputs["mm_kwargs"]["video"][0][FIELD].data)
    (place,) = inputs["mm_placeholders"]["video"]
    assert video is not None
    text = len(inputs["prompt_token_ids"]) - place.length
    metok = METokConfig.load(environ={}, family=config.model_type)
    expected = video_cost(config, frames, metok, video, text)

    held, rows = engine.measure(prompt)
    assert engine.step_tokens == SETTINGS["max_num_batched_tokens"]
    assert len(rows) == layers
    assert place.length == expected.tokens
    assert sum(rows) == expected.rows
    assert sum(held) * layout.layers_per_group == expected.blocks
    # The grid is the table's: the same tokens but for those of times.
    table = video_cost(config, frames, metok)
    assert (
        expected.tokens - video.separators == table.tokens - video_layout(config, frames).separators
    )


def without_pixel_limits(folder: Path) -> None:
    """The table is without the limit that shrinks long videos in Qwen3-VL's processor."""
    file = folder / "video_preprocessor_config.json"
    if file.exists():
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["size"]["longest_edge"] = 1 << 30
        file.write_text(json.dumps(settings), encoding="utf-8")
