"""The sizes of the demo model and its configuration files in the published layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts. `width` is that of the decoder and both towers.

    The video tower is the alignment model's image tower without its last layers, as LLaVA-OneVision
    keeps 26 of SigLIP's 27.
    """

    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    decoder_layers: int = 12
    decoder_ffn: int = 256
    vocab: int = 1024
    image: int = 112
    patch: int = 14
    tower_layers: int = 5
    video_tower_layers: int = 4
    tower_ffn: int = 256
    text_layers: int = 2
    text_vocab: int = 512
    text_window: int = 64

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image // self.patch

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame in the model's own input, pooled at stride 2."""
        return (self.grid // 2) ** 2


def vision_config(sizes: Sizes, layers: int) -> dict[str, Any]:
    """A SigLIP image tower with `layers` layers."""
    return {
        "hidden_size": sizes.width,
        "image_size": sizes.image,
        "intermediate_size": sizes.tower_ffn,
        "model_type": "siglip_vision_model",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": layers,
        "patch_size": sizes.patch,
    }


def alignment_config(sizes: Sizes) -> dict[str, Any]:
    """`config.json` of the alignment towers, a SigLIP."""
    return {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {
            "bos_token_id": 1,
            "eos_token_id": 1,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.tower_ffn,
            "max_position_embeddings": sizes.text_window,
            "model_type": "siglip_text_model",
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.text_layers,
            "pad_token_id": 1,
            "projection_size": sizes.width,
            "vocab_size": sizes.text_vocab,
        },
        "torch_dtype": "bfloat16",
        "vision_config": vision_config(sizes, sizes.tower_layers),
    }


def text_config(sizes: Sizes, ids: dict[str, int]) -> dict[str, Any]:
    """The decoder, a Qwen2."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.decoder_ffn,
        "max_position_embeddings": 32768,
        "max_window_layers": sizes.decoder_layers,
        "model_type": "qwen2",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.decoder_layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": sizes.vocab,
    }


def model_config(sizes: Sizes, ids: dict[str, int]) -> dict[str, Any]:
    """`config.json` with the fields of llava-hf/llava-onevision-qwen2-*-ov-hf."""
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": pinpoints(sizes),
        "image_token_index": ids["<image>"],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": text_config(sizes, ids),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_image_newline_parameter": True,
        "video_token_index": ids["<video>"],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            **vision_config(sizes, sizes.video_tower_layers),
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def pinpoints(sizes: Sizes) -> list[list[int]]:
    """Resolutions for single images: one or two tiles a side."""
    sides = (sizes.image, 2 * sizes.image)
    return [[height, width] for height in sides for width in sides]
