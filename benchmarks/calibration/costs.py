"""The cost of a setting on the calibration's prompts: prefill FLOPs of the decoder, bytes of KV.

Reported figures come from `metok_vllm.plan.accounting`. `StageCosts` does the same arithmetic per
layer, which is fast enough to rank thousands of boundaries.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.errors import ConfigError
from metok_vllm.plan.accounting import decoder_prefill_flops, layer_prefill_flops, request_blocks
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.prompt import PromptPlan

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Costs:
    """Means over prompts. `kv_bytes` are the whole blocks that a request holds while decoding."""

    prefill_flops: float
    kv_bytes: float


def head_sizes(text_config: Any) -> tuple[int, int]:
    """Elements of one token's keys in a layer, and bytes of its keys and values in 16 bits."""
    heads = text_config.num_attention_heads
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    kv_size = (getattr(text_config, "num_key_value_heads", None) or heads) * head_size
    return kv_size, 2 * 2 * kv_size


def costs(
    text_config: Any, layout: StageLayout | None, plans: Sequence[PromptPlan], decoded: int
) -> Costs:
    """Costs of prompts with `decoded` answer tokens under their plans; dense without a layout."""
    _, token_bytes = head_sizes(text_config)
    layers = int(text_config.num_hidden_layers) if layout is None else layout.layers_per_group
    flops = blocks = 0
    for plan in plans:
        used = None if layout is None else plan
        flops += decoder_prefill_flops(text_config, plan.prompt_tokens, layout, used)
        blocks += request_blocks(plan.prompt_tokens + decoded, BLOCK_SIZE, layout, used)
    count = len(plans)
    return Costs(flops / count, blocks * BLOCK_SIZE * layers * token_bytes / count)


class StageCosts:
    """Mean FLOPs of one layer in each stage under the plans of one keep ratio."""

    def __init__(self, text_config: Any, plans: Sequence[PromptPlan]) -> None:
        kv_size, _ = head_sizes(text_config)
        width, inner = text_config.hidden_size, text_config.intermediate_size
        self.of_stage = [
            sum(
                layer_prefill_flops(
                    p.prompt_tokens - p.prefill_dropped[stage], width, kv_size, inner
                )
                for p in plans
            )
            / len(plans)
            for stage in range(NUM_STAGES)
        ]

    def flops(self, layout: StageLayout) -> float:
        """Mean prefill FLOPs of the decoder."""
        return sum(n * each for n, each in zip(layout.stage_sizes, self.of_stage, strict=True))


def possible_layouts(num_layers: int, least_p2: int, most_groups: int) -> list[StageLayout]:
    """Layouts with p2 >= `least_p2` and at most `most_groups` cache groups that the engine accepts.

    Every group costs host time in each step. Raises ConfigError for a decoder with too few layers.
    """
    StageLayout.of(None, num_layers)
    found = []
    for p0, p1, p2 in itertools.combinations(range(1, num_layers), 3):
        if p2 < least_p2:
            continue
        try:
            layout = StageLayout.of((p0, p1, p2), num_layers)
        except ConfigError:
            continue
        if layout.num_groups <= most_groups:
            found.append(layout)
    return found
