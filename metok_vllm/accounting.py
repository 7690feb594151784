"""The arithmetic behind every figure that is reported: FLOPs and KV bytes of a prefill.

Formulas of docs/metok.md, section "Accounting". Where the engine can be asked for blocks, ask it.
"""

from __future__ import annotations

from typing import Any


def layer_prefill_flops(tokens: int, hidden_size: int, kv_size: int, intermediate_size: int) -> int:
    """FLOPs of one decoder layer (grouped-query attention, gated MLP) on `tokens` tokens."""
    n, d = tokens, hidden_size
    return 2 * (n * d * (2 * d + 2 * kv_size) + 2 * n * n * d + 3 * n * d * intermediate_size)


def decoder_prefill_flops(text_config: Any, tokens: int) -> int:
    """FLOPs of the whole decoder on a prompt of `tokens`, from a Hugging Face text config."""
    heads = text_config.num_attention_heads
    head_size = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    kv_heads = getattr(text_config, "num_key_value_heads", None) or heads
    layer = layer_prefill_flops(
        tokens, text_config.hidden_size, kv_heads * head_size, text_config.intermediate_size
    )
    return int(text_config.num_hidden_layers) * layer


def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that `tokens` tokens hold in one cache group."""
    return -(-tokens // block_size)
