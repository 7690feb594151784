"""Settings of tiny Qwen2.5-VL, Qwen3-VL and Qwen3-VL-MoE checkpoints, in the published layouts.

config.json and the preprocessor files have the fields of the repositories on the hub at other
sizes. Only the least picture is smaller than published, so that tests may use small frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE = "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"

# Ids follow the demo's 1,019 words, in the order of Qwen's own tokenizers.
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
MEDIA = ("<|image_pad|>", "<|video_pad|>")
FIRST_SPECIAL, VOCABULARY = 1019, 1088
ID_OF = {token: FIRST_SPECIAL + place for place, token in enumerate((*SPECIAL, *MEDIA))}
TOKEN_IDS = {
    "image_token_id": ID_OF["<|image_pad|>"],
    "video_token_id": ID_OF["<|video_pad|>"],
    "vision_end_token_id": ID_OF["<|vision_end|>"],
    "vision_start_token_id": ID_OF["<|vision_start|>"],
}

TOKENS_PER_SECOND = 2  # of positions in Qwen2.5-VL's videos

DECODER = {
    "attention_dropout": 0.0,
    "bos_token_id": ID_OF["<|endoftext|>"],
    "eos_token_id": ID_OF["<|im_end|>"],
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
TOWER = {
    "depth": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "out_hidden_size": 128,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def _qwen2_5_vl_config() -> dict[str, Any]:
    return {
        **DECODER,
        **TOKEN_IDS,
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "max_window_layers": 8,
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        # Published: 1000000, with which a step of one column hardly shows in random weights.
        "rope_theta": 100.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vision_config": {
            **TOWER,
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "in_chans": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": 112,
        },
    }


def _qwen3_vl_config() -> dict[str, Any]:
    return {
        **TOKEN_IDS,
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            **DECODER,
            "attention_bias": False,
            "dtype": "float32",
            "head_dim": 32,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            **TOWER,
            "deepstack_visual_indexes": [0, 1, 2],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": "qwen3_vl",
            "num_position_embeddings": 64,
            "patch_size": 16,
        },
    }


def _qwen3_vl_moe_config() -> dict[str, Any]:
    config = _qwen3_vl_config()
    experts = {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "model_type": "qwen3_vl_moe_text",
        # Not half the hidden size: Hugging Face tells the two layouts of experts by their shape.
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }
    return {
        **config,
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {**config["text_config"], **experts},
        "vision_config": {**config["vision_config"], "model_type": "qwen3_vl_moe"},
    }


_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_QWEN2_5_VL_FILES = {
    "preprocessor_config.json": {
        **_CLIP,
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
}
_HALVES = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    "processor_class": "Qwen3VLProcessor",
    "temporal_patch_size": 2,
}
QWEN3_VL_FILES = {
    "preprocessor_config.json": {
        **_HALVES,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        # Published: 65536, which would enlarge the pictures of the tests.
        "size": {"longest_edge": 16777216, "shortest_edge": 4096},
    },
    "video_preprocessor_config.json": {
        **_HALVES,
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}

# Roles, texts, pictures and videos in the order of a message, as in the published templates.
MESSAGES = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part.type == 'video' or 'video' in part %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Published:
    """What tells the published repositories apart: config.json, other files, chat template."""

    config: Callable[[], dict[str, Any]]
    files: dict[str, dict[str, Any]]
    chat_template: str


QWEN_VL = {
    QWEN2_5_VL: Published(_qwen2_5_vl_config, _QWEN2_5_VL_FILES, _SYSTEM + MESSAGES),
    QWEN3_VL: Published(_qwen3_vl_config, QWEN3_VL_FILES, MESSAGES),
    QWEN3_VL_MOE: Published(_qwen3_vl_moe_config, QWEN3_VL_FILES, MESSAGES),
}
