"""The configuration of checkpoints in LLaVA-NeXT's own layout, read as LLaVA-OneVision's.

LongVA, LLaVA-Video and lmms-lab's LLaVA-OneVision name `LlavaQwenForCausalLM`. Their config.json is
a flat Qwen2 configuration with `mm_` fields beside it, and names the vision tower only by its hub
name. transformers knows neither.
Source: LLaVA-VL/LLaVA-NeXT at df179663, llava/model/{llava_arch.py, builder.py} and
llava/model/multimodal_encoder; EvolvingLMMs-Lab/LongVA at f4c8781d, the same files of longva/.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlavaOnevisionConfig, SiglipVisionConfig

from metok_vllm.errors import ConfigError
from metok_vllm.plan.layout import AVERAGE, BILINEAR, DENSE_STRIDE

MODEL_TYPE, ARCHITECTURE = "llava_qwen", "LlavaQwenForCausalLM"
PLAIN_MODEL = "metok_vllm.models.llava_qwen:LlavaQwen"
# vLLM's name for the tokenizer that knows the two placeholders.
TOKENIZER_MODE = "metok_llava_qwen"
UNIRES, SPATIAL_UNPAD = "unires", "spatial_unpad"
# Tiles and their merging that are served; vLLM's LLaVA-OneVision shrinks images to nine tiles.
IMAGES = {(UNIRES, "anyres"), (SPATIAL_UNPAD, "anyres_max_9")}
NEWLINES = ("grid", "one_token", "no_token")

# Vision towers by the last part of their hub name: sizes from their own config.json.
VISION_TOWERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "clip-vit-large-patch14-336": (
        CLIPVisionConfig,
        {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    ),
    "siglip-so400m-patch14-384": (
        SiglipVisionConfig,
        {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    ),
}


class LlavaQwenConfig(LlavaOnevisionConfig):
    """LLaVA-OneVision's configuration with `mm_spatial_pool_mode`, `mm_newline_position` and
    `mm_patch_merge_type` as the checkpoint names them."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From the content of a published config.json, or of one that was saved from here."""
        if "text_config" not in config_dict:
            config_dict = translated(config_dict)
        return super().from_dict(config_dict, **kwargs)


def translated(published: dict[str, Any]) -> dict[str, Any]:
    """A published config.json in LLaVA-OneVision's fields.

    Raises ConfigError for a variant of the layout that is not served.
    """
    _check(published)
    vision, layer, strategy = vision_config(published)
    ours = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")
    text = {
        name: value
        for name, value in published.items()
        if not name.startswith(("mm_", "image_", "vision_", "tokenizer_")) and name not in ours
    }
    if not text.get("rope_scaling"):
        text.pop("rope_scaling", None)
    merge = published["mm_patch_merge_type"]
    default_pooling = AVERAGE if merge == UNIRES else BILINEAR
    default_newline = "no_token" if merge == UNIRES else "one_token"
    return {
        "architectures": published.get("architectures", [ARCHITECTURE]),
        "model_type": MODEL_TYPE,
        "torch_dtype": published.get("torch_dtype", published.get("dtype")),
        "text_config": {
            **text,
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
        },
        "vision_config": vision.to_dict(),
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": bool(published.get("tie_word_embeddings", False)),
        "image_grid_pinpoints": pinpoints(published["image_grid_pinpoints"], vision.image_size),
        "mm_vision_tower": published["mm_vision_tower"],
        "mm_patch_merge_type": merge,
        "mm_spatial_pool_mode": published.get("mm_spatial_pool_mode") or default_pooling,
        # unires knows no newline: the published code joins its videos' frames as they are.
        "mm_newline_position": default_newline
        if merge == UNIRES
        else published.get("mm_newline_position") or default_newline,
    }


def vision_config(published: dict[str, Any]) -> tuple[Any, int, str]:
    """Configuration of the vision tower, the hidden state that is read, and which of its rows.

    LLaVA-NeXT deletes SigLIP's last layer and reads the end; it reads CLIP's state
    `mm_vision_select_layer` without the class token.
    """
    name = str(published["mm_vision_tower"])
    known = VISION_TOWERS.get(name.rstrip("/").rpartition("/")[2])
    if known is not None:
        kind, sizes = known
        vision = kind(**sizes)
    else:
        found = AutoConfig.from_pretrained(name)
        vision = getattr(found, "vision_config", found)
    if isinstance(vision, CLIPVisionConfig):
        return vision, int(published.get("mm_vision_select_layer", -2)), "default"
    if isinstance(vision, SiglipVisionConfig):
        vision.num_hidden_layers -= 1
        vision.vision_use_head = False
        return vision, -1, "full"
    raise ConfigError(f"mm_vision_tower must be a CLIP or a SigLIP, got {name[:200]!r}", "model")


def pinpoints(published: str | Sequence[Sequence[int]], side: int) -> list[list[int]]:
    """Image resolutions as [height, width], from [width, height] or a range of tile counts."""
    if isinstance(published, str):
        counts = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", published)]
        if counts:
            (first, top), (last, bottom) = counts[0], counts[-1]
            return [
                [high * side, wide * side]
                for wide in range(first, last + 1)
                for high in range(top, bottom + 1)
            ]
        published = ast.literal_eval(published)
    assert not isinstance(published, str)
    return [[int(height), int(width)] for width, height in published]


def _check(published: dict[str, Any]) -> None:
    """Raise ConfigError for a field with a value that is not served."""
    for name in ("mm_vision_tower", "mm_patch_merge_type", "image_grid_pinpoints"):
        if not published.get(name):
            raise ConfigError(f"config.json has no {name}", "model")
    images = (published["mm_patch_merge_type"], published.get("image_aspect_ratio"))
    _require("mm_patch_merge_type and image_aspect_ratio", images, IMAGES)
    served: dict[str, tuple[Any, ...]] = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_spatial_pool_mode": (None, AVERAGE, BILINEAR),
        "mm_spatial_pool_stride": (None, DENSE_STRIDE),
        "mm_newline_position": (None, *NEWLINES),
        "mm_vision_select_feature": (None, "patch"),
        "add_faster_video": (None, False),
        "mm_use_im_start_end": (None, False),
    }
    for name, values in served.items():
        _require(name, published.get(name), values)
    if "mm_vision_tower" not in str(published.get("mm_tunable_parts") or "mm_vision_tower"):
        raise ConfigError("mm_tunable_parts leaves the vision tower out of the checkpoint", "model")


def _require(name: str, value: Any, values: Any) -> None:
    if value not in values:
        shown = ", ".join(repr(one) for one in values if one is not None)
        raise ConfigError(f"{name} must be one of {shown}, got {str(value)[:200]!r}", "model")


def register_config() -> None:
    """Let transformers read these configurations, in a process without vLLM too."""
    AutoConfig.register(MODEL_TYPE, LlavaQwenConfig, exist_ok=True)


def register() -> None:
    """Register configuration, tokenizer and vLLM's model without METok."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    register_config()
    ModelRegistry.register_model(ARCHITECTURE, PLAIN_MODEL)
    module = "metok_vllm.models.llava_qwen_processor"
    TokenizerRegistry.register(TOKENIZER_MODE, module, "LlavaQwenTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, "vllm.renderers.hf", "HfRenderer")


def prepare(model_config: Any) -> None:
    """Give a model of this layout its tokenizer. Raises ConfigError if another one is asked for."""
    if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
        raise ConfigError(
            f"--tokenizer-mode {model_config.tokenizer_mode} cannot serve {ARCHITECTURE}: its "
            "tokenizer lacks the placeholders of images and videos",
            "model",
        )
    model_config.tokenizer_mode = TOKENIZER_MODE
