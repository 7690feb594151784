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
from metok_vllm.plan.accounting import decoder_prefill_flops, request_blocks
from metok_vllm.plan.decoder_flops import head_sizes, layer_costs
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.prompt import PromptPlan

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Costs:
    """Means over prompts. `kv_bytes` are the whole blocks that a request holds while decoding."""

    prefill_flops: float
    kv_bytes: float


def token_kv_bytes(text_config: Any) -> int:
    """Bytes of one token's keys and values in a layer, in 16 bits."""
    _, kv_size = head_sizes(text_config)
    return 2 * 2 * kv_size


def costs(
    text_config: Any, layout: StageLayout | None, plans: Sequence[PromptPlan], decoded: int
) -> Costs:
    """Costs of prompts with `decoded` answer tokens under their plans; dense without a layout."""
    token_bytes = token_kv_bytes(text_config)
    layers = int(text_config.num_hidden_layers) if layout is None else layout.layers_per_group
    flops = blocks = 0
    for plan in plans:
        used = None if layout is None else plan
        flops += decoder_prefill_flops(text_config, plan.prompt_tokens, layout, used)
        blocks += request_blocks(plan.prompt_tokens + decoded, BLOCK_SIZE, layout, used)
    count = len(plans)
    return Costs(flops / count, blocks * BLOCK_SIZE * layers * token_bytes / count)


class StageCosts:
    """Mean FLOPs of the layers in each stage under the plans of one keep ratio."""

    def __init__(self, text_config: Any, plans: Sequence[PromptPlan]) -> None:
        # [stage][layer]: of all layers before this one, if they were in the stage.
        self.below: list[list[float]] = []
        layers = layer_costs(text_config)
        for stage in range(NUM_STAGES):
            rows = [plan.prompt_tokens - plan.prefill_dropped[stage] for plan in plans]
            each = [sum(map(layer.flops, rows)) / len(plans) for layer in layers]
            self.below.append(list(itertools.accumulate(each, initial=0.0)))

    def flops(self, layout: StageLayout) -> float:
        """Mean prefill FLOPs of the decoder."""
        spans = zip(self.below, layout.starts, layout.starts[1:], strict=False)
        return sum(below[end] - below[start] for below, start, end in spans)


def possible_layouts(
    num_layers: int, least_p2: int, most_groups: int, first: int = 1
) -> list[StageLayout]:
    """Layouts with p0 >= `first`, p2 >= `least_p2` and at most `most_groups` cache groups that the
    engine accepts.

    Every group costs host time in each step. Raises ConfigError for a decoder with too few layers.
    """
    StageLayout.of(None, num_layers, first)
    found = []
    for p0, p1, p2 in itertools.combinations(range(first, num_layers), 3):
        if p2 < least_p2:
            continue
        try:
            layout = StageLayout.of((p0, p1, p2), num_layers)
        except ConfigError:
            continue
        if layout.num_groups <= most_groups:
            found.append(layout)
    return found
