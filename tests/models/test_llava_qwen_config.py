"""config.json of LLaVA-NeXT's own layout, read as LLaVA-OneVision's configuration."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from metok_vllm.errors import ConfigError
from metok_vllm.models import llava_qwen_config
from metok_vllm.models.llava_qwen_config import LlavaQwenConfig, pinpoints, translated
from metok_vllm.plan.families import video_layout
from tests.reference.llava_qwen_checkpoint import LONGVA, write_checkpoint

# Fields of LongVA-7B that decide what is served: its training script and Qwen2-7B's sizes.
LONGVA_7B: dict[str, Any] = {
    "architectures": ["LlavaQwenForCausalLM"],
    "hidden_size": 3584,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": [[336, 672], [336, 1008], [672, 336], [672, 672]],
    "intermediate_size": 18944,
    "max_position_embeddings": 224000,
    "mm_patch_merge_type": "unires",
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "average",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava_qwen",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rope_scaling": None,
    "rope_theta": 1000000000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}
LLAVA_VIDEO_7B = {
    **LONGVA_7B,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_spatial_pool_mode": "bilinear",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
}


def read(published: dict[str, Any]) -> Any:
    return LlavaQwenConfig.from_dict(dict(published))


def test_longva_7b() -> None:
    config = read(LONGVA_7B)
    vision, text = config.vision_config, config.text_config
    assert (vision.model_type, vision.hidden_size) == ("clip_vision_model", 1024)
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers) == (336, 14, 24)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (text.hidden_size, text.num_key_value_heads, text.num_hidden_layers) == (3584, 4, 28)
    assert text.rope_parameters["rope_theta"] == 1e9
    assert text.max_position_embeddings == 224000
    assert video_layout(config, 128).dense_tokens() == 128 * 144
    # Published as width and height.
    assert config.image_grid_pinpoints == [[672, 336], [1008, 336], [336, 672], [672, 672]]


def test_llava_video_7b() -> None:
    config = read(LLAVA_VIDEO_7B)
    vision = config.vision_config
    assert (vision.model_type, vision.hidden_size) == ("siglip_vision_model", 1152)
    # The published code deletes the last of 27 layers and reads the end.
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers) == (384, 14, 26)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-1, "full")
    assert video_layout(config, 64).dense_tokens() == 64 * 14 * 15
    assert len(config.image_grid_pinpoints) == 36
    assert config.image_grid_pinpoints[:2] == [[384, 384], [768, 384]]


def test_llava_onevision_in_its_own_layout() -> None:
    published = {**LLAVA_VIDEO_7B, "mm_newline_position": None, "mm_spatial_pool_mode": None}
    assert video_layout(read(published), 32).dense_tokens() == 32 * 196 + 1


def test_a_range_counts_width_first() -> None:
    assert pinpoints("(1x1),...,(2x2)", 10) == [[10, 10], [20, 10], [10, 20], [20, 20]]
    assert pinpoints("[(10, 20), (20, 10)]", 10) == [[20, 10], [10, 20]]


def test_a_tower_without_a_row_in_the_table_is_read_from_its_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", LONGVA)
    llava_qwen_config.register_config()
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert isinstance(config, LlavaQwenConfig)
    assert (config.vision_config.hidden_size, config.vision_config.image_size) == (64, 64)


def test_it_travels_between_processes_and_through_files() -> None:
    config = read(LONGVA_7B)
    for again in (pickle.loads(pickle.dumps(config)), read(config.to_dict())):
        assert again.to_dict() == config.to_dict()
        assert video_layout(again, 2) == video_layout(config, 2)


def test_a_model_of_this_layout_gets_its_tokenizer() -> None:
    for mode in ("auto", "hf", llava_qwen_config.TOKENIZER_MODE):
        model = SimpleNamespace(tokenizer_mode=mode)
        llava_qwen_config.prepare(model)
        assert model.tokenizer_mode == llava_qwen_config.TOKENIZER_MODE
    with pytest.raises(ConfigError, match="mistral"):
        llava_qwen_config.prepare(SimpleNamespace(tokenizer_mode="mistral"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride"),
        ({"mm_newline_position": "frame"}, "mm_newline_position"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type"),
        ({"image_aspect_ratio": "anyres_max_4"}, "image_aspect_ratio"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"add_faster_video": True}, "add_faster_video"),
        ({"mm_tunable_parts": "mm_mlp_adapter"}, "mm_tunable_parts"),
        ({"mm_vision_tower": None}, "mm_vision_tower"),
        ({"mm_projector_type": "x" * 5000}, "mm_projector_type"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        translated({**LONGVA_7B, **changes})
    assert len(str(caught.value)) < 400
