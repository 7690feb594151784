"""Sizes of Qwen2.5-VL and Qwen3-VL as published, and of a small Qwen3-VL for a CPU.

The configurations are the config.json files of the hub's repositories Qwen/Qwen2.5-VL-7B-Instruct,
Qwen/Qwen3-VL-8B-Instruct and Qwen/Qwen3-VL-30B-A3B-Instruct, without fields that nothing here
reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.throughput.sizes import CPU_FLAGS, GPU_FLAGS, Tower

# Ids of Qwen's tokenizers, the same in all of these models.
SPECIAL_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


@dataclass(frozen=True)
class QwenSizes:
    """A model by its config.json; `files` are those of its processors.

    `alignment`, `real_weights` and `flags` are those of `Sizes`.
    """

    config: dict[str, Any]
    files: dict[str, dict[str, Any]]
    alignment: Tower | None
    real_weights: bool
    flags: tuple[str, ...]

    @property
    def text(self) -> dict[str, Any]:
        """The decoder's fields, which Qwen2.5-VL has at the top."""
        text: dict[str, Any] = self.config.get("text_config", self.config)
        return text

    @property
    def positions(self) -> int:
        """The longest prompt that the decoder was made for."""
        return int(self.text["max_position_embeddings"])


def _qwen2_5_vl() -> dict[str, Any]:
    return {
        **_tokens(),
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }


def _qwen3_vl(kind: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Sections and sizes that all published models have, with those of one."""
    class_name = {"qwen3_vl": "Qwen3VL", "qwen3_vl_moe": "Qwen3VLMoe"}[kind]
    tokens = _tokens()
    return {
        **{name: value for name, value in tokens.items() if name.startswith(("im", "v"))},
        "architectures": [f"{class_name}ForConditionalGeneration"],
        "model_type": kind,
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "text_config": {
            **{name: value for name, value in tokens.items() if name.startswith(("bos", "eos"))},
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "model_type": f"{kind}_text",
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "vocab_size": 151936,
            **text,
        },
        "vision_config": {
            "deepstack_visual_indexes": [8, 16, 24],
            "depth": 27,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 1152,
            "in_channels": 3,
            "intermediate_size": 4304,
            "model_type": kind,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }


def _tokens() -> dict[str, int]:
    return {
        "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
        "eos_token_id": SPECIAL_IDS["<|im_end|>"],
        "image_token_id": SPECIAL_IDS["<|image_pad|>"],
        "video_token_id": SPECIAL_IDS["<|video_pad|>"],
        "vision_start_token_id": SPECIAL_IDS["<|vision_start|>"],
        "vision_end_token_id": SPECIAL_IDS["<|vision_end|>"],
    }


QWEN2_5_VL_7B = _qwen2_5_vl()
QWEN3_VL_8B = _qwen3_vl(
    "qwen3_vl",
    {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
    },
    {},
)
QWEN3_VL_30B_A3B = _qwen3_vl(
    "qwen3_vl_moe",
    {
        "decoder_sparse_step": 1,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
    },
    {},
)
# The decoder of `cpu-reference`, with a tower as small as there.
CPU_QWEN3_VL = _qwen3_vl(
    "qwen3_vl",
    {
        "head_dim": 64,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [12, 10, 10],
            "rope_type": "default",
        },
        "tie_word_embeddings": True,
    },
    {
        "deepstack_visual_indexes": [0, 1, 2],
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
    },
)

_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_PATCHES = {"merge_size": 2, "patch_size": 16, "temporal_patch_size": 2}
QWEN3_VL_FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        **_HALVES,
        **_PATCHES,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    },
    "video_preprocessor_config.json": {
        **_HALVES,
        **_PATCHES,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "video_processor_type": "Qwen3VLVideoProcessor",
    },
}
QWEN2_5_VL_FILES: dict[str, dict[str, Any]] = {
    "preprocessor_config.json": {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": 12845056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    }
}
# SigLIP base/16-224, for models without a SigLIP of their own to share.
SIGLIP_BASE = Tower(12, 768, 12, 3072, image=224, patch=16)
_GPU = ("--dtype", "bfloat16", "--max-model-len", "65536", *GPU_FLAGS)
QWEN_SIZES = {
    "cpu-qwen3-vl": QwenSizes(
        CPU_QWEN3_VL, QWEN3_VL_FILES, None, True, ("--dtype", "bfloat16", *CPU_FLAGS)
    ),
    "qwen2.5-vl-7b": QwenSizes(QWEN2_5_VL_7B, QWEN2_5_VL_FILES, SIGLIP_BASE, False, _GPU),
    "qwen3-vl-8b": QwenSizes(QWEN3_VL_8B, QWEN3_VL_FILES, SIGLIP_BASE, False, _GPU),
}
