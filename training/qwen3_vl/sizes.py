"""The sizes of the Qwen3-VL model, its vocabulary and `config.json`."""

from __future__ import annotations

from typing import Any

from training.sizes import Sizes

BASE = Sizes()  # the demo's; width, heads and layers are the same
PATCH, MERGE, TEMPORAL = 16, 2, 2
UNIT = PATCH * MERGE  # pixels of a merged token
DEEPSTACK = (1, 3)  # vision layers whose tokens are added to the outputs of decoder layers 0 and 1
FEATURE_LAYERS = tuple(sorted({*DEEPSTACK, BASE.video_tower_layers - 1}))
HEAD = BASE.width // BASE.heads
VOCAB = 1088
SECONDS = " seconds"  # one token of every timestamp
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def text_config() -> dict[str, Any]:
    """The decoder."""
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": BASE.width,
        "initializer_range": 0.02,
        "intermediate_size": BASE.decoder_ffn,
        "max_position_embeddings": 32768,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": BASE.heads,
        "num_hidden_layers": BASE.decoder_layers,
        "num_key_value_heads": BASE.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
            "rope_type": "default",
        },
        "rope_theta": 1000000,
        "use_cache": True,
        "vocab_size": VOCAB,
    }


def vision_config() -> dict[str, Any]:
    """The vision tower: the demo's, with Qwen3-VL's patches, rotary positions and mergers."""
    return {
        "deepstack_visual_indexes": list(DEEPSTACK),
        "depth": BASE.video_tower_layers,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": BASE.width,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": BASE.tower_ffn,
        "model_type": "qwen3_vl",
        "num_heads": BASE.heads,
        "num_position_embeddings": BASE.grid**2,
        "out_hidden_size": BASE.width,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
    }


def model_config(ids: dict[str, int]) -> dict[str, Any]:
    """`config.json` with the fields of Qwen/Qwen3-VL-*-Instruct."""
    ends = {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": text_config() | ends | {"dtype": "bfloat16"},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": vision_config(),
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }
