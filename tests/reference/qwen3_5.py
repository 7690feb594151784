"""Tiny Qwen3.5 checkpoints in the published layout: settings, and the weights of its own layers.

Three layers of four hold a state (Gated DeltaNet), the fourth has attention.

Fields are those of the repositories on the hub, at other sizes; Qwen3.6 has the same. Heads of the
linear layers have 64 channels, the fewest that vLLM's CPU kernels take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.reference.qwen_vl_config import (
    DECODER,
    ID_OF,
    MESSAGES,
    QWEN3_VL_FILES,
    TOKEN_IDS,
    TOWER,
    Published,
)

QWEN3_5, QWEN3_5_MOE = "qwen3_5", "qwen3_5_moe"
# Norms are stored as their distance from 1, but for those of these parts. Those of queries and
# keys spread the scores.
FROM_ZERO, NORM_GAIN = ("visual", "linear_attn"), 1.5
NUM_LAYERS, INTERVAL = 8, 4
LAYER_TYPES = [
    "linear_attention" if (layer + 1) % INTERVAL else "full_attention"
    for layer in range(NUM_LAYERS)
]


def _config() -> dict[str, Any]:
    return {
        **TOKEN_IDS,
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": {
            **DECODER,
            "attention_bias": False,
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "eos_token_id": ID_OF["<|im_end|>"],
            "full_attention_interval": INTERVAL,
            "head_dim": 64,
            "layer_types": LAYER_TYPES,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 64,
            "mamba_ssm_dtype": "float32",
            "mlp_only_layers": [],
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "rope_parameters": {
                "mrope_interleaved": True,
                # A quarter of a head's channels turn: 8 pairs.
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000000,
                "rope_type": "default",
            },
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **TOWER,
            "deepstack_visual_indexes": [],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen3_5",
            "num_position_embeddings": 64,
            "patch_size": 16,
        },
    }


def _moe_config() -> dict[str, Any]:
    config = _config()
    text = {name: value for name, value in config["text_config"].items() if "mlp" not in name}
    del text["intermediate_size"]
    experts = {
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 96,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 96,
    }
    return {
        **config,
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {**text, **experts},
        "vision_config": {**config["vision_config"], "model_type": "qwen3_5_moe"},
    }


HYBRID = {
    QWEN3_5: Published(_config, QWEN3_VL_FILES, MESSAGES),
    QWEN3_5_MOE: Published(_moe_config, QWEN3_VL_FILES, MESSAGES),
}


def own_weight(name: str, like: Tensor, seed: int) -> Tensor | None:
    """A tensor that other families have not, or None; in the dtype of the published files."""
    rng = np.random.default_rng([seed, *name.encode()])
    if name.endswith(".A_log"):
        # Slower to forget than at the start of training: a head's half-life is up to many frames.
        values = np.log(rng.uniform(0.01, 1.0, like.shape))
    elif name.endswith(".dt_bias"):
        values = rng.uniform(-3.0, -1.0, like.shape)
    elif name.endswith("conv1d.weight"):
        values = 0.5 * rng.standard_normal(like.shape)
    elif name.endswith(("q_norm.weight", "k_norm.weight")):
        values = np.full(like.shape, NORM_GAIN - 1)
    elif name.endswith("norm.weight") and not any(part in name for part in FROM_ZERO):
        values = np.zeros(like.shape)
    else:
        return None
    return torch.from_numpy(values.astype(np.float32))


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors: in bfloat16, beside those of a head that drafts tokens (MTP)."""
    state = {name: tensor.bfloat16() for name, tensor in state.items()}
    width = state["model.language_model.norm.weight"].shape
    return {**state, "mtp.norm.weight": torch.zeros(width, dtype=torch.bfloat16)}
