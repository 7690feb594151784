"""Prefill FLOPs of each decoder layer, from a Hugging Face text configuration.

Dense and MoE layers with grouped-query attention, and the linear attention of Qwen3.5. A
multiplication and its addition are two FLOPs; norms, activations and the output layer are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds of a layer: for each token, and for each pair of a query and a key.

    Pairs are those of the whole square, as kernels without a causal mask run them.
    """

    per_token: int
    per_pair: int

    def flops(self, tokens: int, cached: int = 0) -> int:
        """FLOPs of the layer on one prompt of `tokens`, of which the first `cached` do not run."""
        rows = tokens - cached
        return 2 * (rows * self.per_token + rows * tokens * self.per_pair)


def head_sizes(text_config: Any) -> tuple[int, int]:
    """Widths of one token's queries and of its keys in an attention layer."""
    heads = int(text_config.num_attention_heads)
    size = int(getattr(text_config, "head_dim", None) or text_config.hidden_size // heads)
    return heads * size, int(getattr(text_config, "num_key_value_heads", None) or heads) * size


def layer_costs(text_config: Any) -> tuple[LayerCost, ...]:
    """The cost of each decoder layer."""
    layers = range(int(text_config.num_hidden_layers))
    kinds = getattr(text_config, "layer_types", None) or ("full_attention",) * len(layers)
    costs = []
    for layer in layers:
        mixing = (
            _linear_attention(text_config)
            if kinds[layer] == "linear_attention"
            else _attention(text_config)
        )
        per_token = mixing.per_token + int(text_config.hidden_size) * _mlp(text_config, layer)
        costs.append(LayerCost(per_token, mixing.per_pair))
    return tuple(costs)


def _attention(config: Any) -> LayerCost:
    hidden = int(config.hidden_size)
    query, kv = head_sizes(config)
    # Decoders with linear attention layers gate the output of the others (Qwen3.5).
    gated = hasattr(config, "linear_num_value_heads") and getattr(config, "attn_output_gate", True)
    return LayerCost(hidden * ((3 if gated else 2) * query + 2 * kv), 2 * query)


def _linear_attention(config: Any) -> LayerCost:
    """Gated DeltaNet: projections, convolution, and a state of key x value for each value head,
    which each token reads twice and updates once (transformers, qwen3_5)."""
    heads = int(config.linear_num_value_heads)
    key = int(config.linear_num_key_heads) * int(config.linear_key_head_dim)
    value = heads * int(config.linear_value_head_dim)
    projections = int(config.hidden_size) * (2 * key + 3 * value + 2 * heads)
    convolution = (2 * key + value) * int(config.linear_conv_kernel_dim)
    return LayerCost(projections + convolution + 3 * value * int(config.linear_key_head_dim), 0)


def _mlp(config: Any, layer: int) -> int:
    """Columns and rows of width `hidden_size` that a token is multiplied by in the layer's MLP:
    three matrices of a gated MLP, or those of its experts, and the router's."""
    experts = int(getattr(config, "num_experts", None) or 0)
    step = int(getattr(config, "decoder_sparse_step", None) or 1)
    dense = getattr(config, "mlp_only_layers", None) or ()
    if not experts or layer in dense or (layer + 1) % step:
        return 3 * int(config.intermediate_size)
    width = int(config.num_experts_per_tok) * int(config.moe_intermediate_size)
    shared = int(getattr(config, "shared_expert_intermediate_size", None) or 0)
    return 3 * (width + shared) + experts + bool(shared)
