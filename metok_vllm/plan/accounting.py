"""FLOPs, KV blocks and visual tokens of a request, as every report counts them.

Formulas of docs/metok.md, section "Accounting". Where the engine can be asked for blocks, ask it.
A `layout` of None stands for a decoder that runs whole, a `plan` of None for a request that stages
2 and 3 leave alone.
"""

from __future__ import annotations

from typing import Any

from metok_vllm.plan.decoder_flops import layer_costs
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.prompt import PromptPlan


def decoder_prefill_flops(
    text_config: Any,
    tokens: int,
    layout: StageLayout | None = None,
    plan: PromptPlan | None = None,
    cached: int = 0,
) -> int:
    """FLOPs of the whole decoder on a prompt of `tokens`, from a Hugging Face text config.

    With a plan, each layer counts with the rows that its stage runs on. The first `cached` tokens
    of the prompt were read from a prefix cache; what a stage dropped is among them.
    """
    costs = layer_costs(text_config)
    if layout is None or plan is None:
        return sum(cost.flops(tokens, cached) for cost in costs)
    kept = [tokens - dropped for dropped in plan.prefill_dropped]
    earlier = [cached - dropped if cached else 0 for dropped in plan.prefill_dropped]
    stages = [layout.stage_of_layer(number) for number in range(len(costs))]
    return sum(cost.flops(kept[s], earlier[s]) for cost, s in zip(costs, stages, strict=True))


def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that `tokens` tokens hold in one cache group."""
    return -(-tokens // block_size)


def request_blocks(
    tokens: int, block_size: int, layout: StageLayout | None, plan: PromptPlan | None
) -> int:
    """Blocks of the pool that a request holds, over all cache groups, once it has `tokens` tokens.

    A block is `block_size` tokens in the layers of one group.
    """
    if layout is None:
        return blocks_for(tokens, block_size)
    return sum(
        groups * blocks_for(tokens if plan is None else plan.slots(stage, tokens), block_size)
        for stage, groups in enumerate(layout.groups_of_stage)
    )


def visual_tokens_by_stage(
    encoded: int, plan: PromptPlan | None, *, decode: bool = False
) -> tuple[int, ...]:
    """Visual tokens that each stage's layers run on in the prefill, or cache for decoding.

    `encoded` is the number that the decoder gets. Without a plan it is the same for all layers. A
    video's last token that is the prompt's last row runs in every stage and counts in each.
    """
    if plan is None:
        return (encoded,)
    last_row = encoded - sum(video.tokens for video in plan.videos)
    counts = plan.visual_tokens(decode=decode)
    assert len(counts) == NUM_STAGES
    return tuple(count + last_row for count in counts)
