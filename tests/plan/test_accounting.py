"""FLOPs and blocks against numbers worked out by hand."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import pytest

from metok_vllm.plan.accounting import (
    blocks_for,
    decoder_prefill_flops,
    request_blocks,
    visual_tokens_by_stage,
)
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning

# Stages of 2, 4, 2 and 2 layers in groups of 2: 1, 2, 1 and 1 of them.
LAYOUT = StageLayout((2, 6, 8), 10)
HALF = Pruning((2, 3), Fraction(1, 2), Fraction(1, 4), Fraction(1))


def plan(prompt: int = 60, tokens: int = 40) -> PromptPlan:
    """Half of `tokens` at each pruning layer, and a quarter of that while decoding."""
    made = PromptPlan.of(prompt, [("a", 10, tokens, HALF)])
    assert made is not None
    return made


@pytest.mark.parametrize("explicit", [True, False])
def test_a_decoder_is_its_layers(explicit: bool) -> None:
    config = SimpleNamespace(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=1 if explicit else None,
        intermediate_size=5,
        num_hidden_layers=7,
    )
    # n=3 tokens, d=4, two KV heads of 1, MLP of 5:
    # projections 3*4*(2*4 + 2*2) = 144; attention 2*9*4 = 72; MLP 3*3*4*5 = 180; times 2.
    assert decoder_prefill_flops(config, 3) == 7 * 2 * (144 + 72 + 180)


def test_qwen2_7b_on_a_dense_prompt() -> None:
    # 2 * (n d (2d + 2 d_kv) + 2 n^2 d + 3 n d d_mlp) * 28 at n=6333, worked out separately.
    n, d, kv, mlp = 6333, 3584, 512, 18944
    by_hand = 28 * 2 * (n * d * (2 * d + 2 * kv) + 2 * n * n * d + 3 * n * d * mlp)
    config = SimpleNamespace(
        hidden_size=d,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=mlp,
        num_hidden_layers=28,
    )
    assert decoder_prefill_flops(config, n) == by_hand


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (128, 1), (129, 2)])
def test_blocks(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 128) == blocks


def test_blocks_of_all_cache_groups() -> None:
    # 60, 40, 30 and 20 rows in the prefill; 60, 25, 23 and 20 held afterwards.
    assert request_blocks(60, 16, LAYOUT, plan()) == 4 + 2 * 3 + 2 + 2
    assert request_blocks(61, 16, LAYOUT, plan()) == 4 + 2 * 2 + 2 + 2
    assert request_blocks(68, 16, LAYOUT, plan()) == 5 + 2 * 3 + 2 + 2
    assert request_blocks(60, 16, LAYOUT, None) == 5 * 4
    assert request_blocks(60, 16, None, None) == 4


def test_flops_of_the_rows_that_each_stage_runs_on() -> None:
    config = SimpleNamespace(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=5,
        num_hidden_layers=10,
    )
    by_stage = [(2, 60), (4, 40), (2, 30), (2, 20)]
    by_hand = sum(
        2 * layers * (rows * 4 * (2 * 4 + 2 * 2) + 2 * rows**2 * 4 + 3 * rows * 4 * 5)
        for layers, rows in by_stage
    )
    assert decoder_prefill_flops(config, 60, LAYOUT, plan()) == by_hand
    # Of 60 tokens 50 are cached, what was dropped among them: ten rows run in every layer.
    rest = sum(
        2 * layers * 10 * (4 * (2 * 4 + 2 * 2) + 2 * rows * 4 + 3 * 4 * 5)
        for layers, rows in by_stage
    )
    assert decoder_prefill_flops(config, 60, LAYOUT, plan(), 50) == rest
    whole = decoder_prefill_flops(config, 60)
    assert decoder_prefill_flops(config, 60, LAYOUT, None) == whole


def test_visual_tokens_of_each_stage() -> None:
    assert visual_tokens_by_stage(40, plan()) == (40, 20, 10, 0)
    assert visual_tokens_by_stage(40, plan(), decode=True) == (40, 5, 3, 0)
    assert (
        visual_tokens_by_stage(40, None) == visual_tokens_by_stage(40, None, decode=True) == (40,)
    )


def test_a_video_that_ends_the_prompt_has_its_last_token_everywhere() -> None:
    ending = plan(prompt=50)
    # The 39 others are halved: 20, 10, none.
    assert visual_tokens_by_stage(40, ending) == (40, 21, 11, 1)
    assert visual_tokens_by_stage(40, ending, decode=True) == (40, 6, 4, 1)
