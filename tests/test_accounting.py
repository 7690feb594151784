"""FLOPs and blocks against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from metok_vllm.accounting import blocks_for, decoder_prefill_flops, layer_prefill_flops


def test_one_layer_by_hand() -> None:
    # n=3 tokens, d=4, two KV heads of 1, MLP of 5:
    # projections 3*4*(2*4 + 2*2) = 144; attention 2*9*4 = 72; MLP 3*3*4*5 = 180; times 2.
    assert layer_prefill_flops(3, 4, 2, 5) == 2 * (144 + 72 + 180)


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
    assert decoder_prefill_flops(config, 3) == 7 * 792


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
