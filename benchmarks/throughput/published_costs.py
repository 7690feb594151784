"""What one video costs at the sizes of published models, dense and with METok's preset `balanced`.

    python -m metok_vllm.benchmarks.throughput.published_costs

prints the rows of docs/models.md and README.md. Nothing runs: rows and KV blocks are those of the
plans that scheduler and workers follow, FLOPs and bytes are calculated for them in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.throughput.checkpoints import model_config
from metok_vllm.benchmarks.throughput.qwen_sizes import (
    QWEN2_5_VL_7B,
    QWEN3_VL_8B,
    QWEN3_VL_30B_A3B,
)
from metok_vllm.benchmarks.throughput.sizes import SIZES
from metok_vllm.config import METokConfig
from metok_vllm.plan.accounting import decoder_prefill_flops, request_blocks
from metok_vllm.plan.costs import TEXT_BEFORE, TEXT_TOKENS
from metok_vllm.plan.decoder_flops import head_sizes
from metok_vllm.plan.families import deepstack_levels, video_layout
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning
from metok_vllm.plan.tower_flops import tower_flops

FRAMES = (64, 128)
BLOCK_SIZE = 32
CONFIGS: dict[str, dict[str, Any]] = {
    "LLaVA-OneVision-7B": model_config(SIZES["llava-onevision-7b"]),
    "Qwen2.5-VL-7B": QWEN2_5_VL_7B,
    "Qwen3-VL-8B": QWEN3_VL_8B,
    "Qwen3-VL-30B-A3B": QWEN3_VL_30B_A3B,
}


@dataclass(frozen=True)
class VideoCost:
    """One video of `frames` sampled frames with TEXT_TOKENS tokens of text.

    `rows` are those of all layers together, `blocks` those held in decoding, of BLOCK_SIZE tokens
    and one layer each. `tower_flops` are the same for dense and METok.
    """

    frames: int
    dense_tokens: int
    tokens: int
    dense_rows: int
    rows: int
    dense_flops: int
    flops: int
    dense_blocks: int
    blocks: int
    block_bytes: int
    tower_flops: int


def video_cost(
    config: Any,
    frames: int,
    metok: METokConfig,
    video: VideoLayout | None = None,
    text_tokens: int = TEXT_TOKENS,
) -> VideoCost:
    """The cost for a model by its Hugging Face configuration, with METok's default layers.

    `video` is the layout of `frames` sampled frames where it is known.
    """
    video, text = video or video_layout(config, frames), config.text_config
    layers, first = int(text.num_hidden_layers), max(deepstack_levels(config), 1)
    layout = StageLayout.of(metok.pruning_layers, layers, first)
    dense_tokens, tokens = video.dense_tokens(), video.tokens(metok)
    dense_prompt, prompt = dense_tokens + text_tokens, tokens + text_tokens
    pruning = Pruning.of_video(metok, video)
    plan = PromptPlan.of(prompt, [("video", TEXT_BEFORE, tokens, pruning)])
    assert plan is not None
    group = layout.layers_per_group
    return VideoCost(
        frames,
        dense_tokens,
        tokens,
        dense_rows=layers * dense_prompt,
        rows=sum(
            layout.stage_sizes[stage] * (prompt - plan.prefill_dropped[stage])
            for stage in range(NUM_STAGES)
        ),
        dense_flops=decoder_prefill_flops(text, dense_prompt),
        flops=decoder_prefill_flops(text, prompt, layout, plan),
        # Plain vLLM has one group of all layers.
        dense_blocks=layers * request_blocks(dense_prompt + 1, BLOCK_SIZE, None, None),
        blocks=group * request_blocks(prompt + 1, BLOCK_SIZE, layout, plan),
        block_bytes=BLOCK_SIZE * 2 * 2 * head_sizes(text)[1],
        tower_flops=tower_flops(config, video),
    )


def published_config(name: str) -> Any:
    """The Hugging Face configuration of a model in CONFIGS."""
    from transformers import CONFIG_MAPPING

    published = CONFIGS[name]
    return CONFIG_MAPPING[published["model_type"]].from_dict(published)


def costs() -> dict[str, list[VideoCost]]:
    """Every model of CONFIGS at every number of FRAMES, with `balanced` of its family."""
    found = {}
    for name in CONFIGS:
        config = published_config(name)
        metok = METokConfig.load(environ={}, family=config.model_type)
        found[name] = [video_cost(config, frames, metok) for frames in FRAMES]
    return found


def row(name: str, cost: VideoCost) -> str:
    """The row of docs/models.md."""
    mib = cost.block_bytes / 2**20
    cells = (
        name,
        f"{cost.frames}",
        f"{cost.dense_tokens:,} to {cost.tokens:,}",
        f"{cost.dense_rows:,} to {cost.rows:,}",
        f"{cost.dense_flops / 1e12:.1f} T to {cost.flops / 1e12:.1f} T",
        _less(cost.dense_flops, cost.flops),
        f"{cost.dense_blocks * mib:,.0f} MiB to {cost.blocks * mib:,.0f} MiB",
        _less(cost.dense_blocks, cost.blocks),
        f"{cost.tower_flops / 1e12:.1f} T",
        _less(cost.dense_flops + cost.tower_flops, cost.flops + cost.tower_flops),
    )
    return f"| {' | '.join(cells)} |"


def readme_row(name: str, found: Sequence[VideoCost]) -> str:
    """The shorter row of README.md, for several numbers of frames."""
    cells = (
        name,
        " / ".join(f"{cost.tokens:,} of {cost.dense_tokens:,}" for cost in found),
        " / ".join(_less(cost.dense_flops, cost.flops) for cost in found),
        " / ".join(_less(cost.dense_blocks, cost.blocks) for cost in found),
        " / ".join(
            _less(cost.dense_flops + cost.tower_flops, cost.flops + cost.tower_flops)
            for cost in found
        ),
    )
    return f"| {' | '.join(cells)} |"


def _less(dense: int, kept: int) -> str:
    return f"{100 * (1 - kept / dense):.1f} %"


if __name__ == "__main__":
    for model, of_model in costs().items():
        print(*(row(model, cost) for cost in of_model), sep="\n")
        print(readme_row(model, of_model))
