"""Tiny random checkpoints in the published layouts, for tests that need real towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

WORDS = ("where is the red ball when does it fall", "who opened the door and then left")
VISION_WIDTH, PATCH = 16, 6


def _vision(image_size: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": PATCH,
        **more,
    }


def _text(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": vocabulary,
        **more,
    }


def _spread(model: torch.nn.Module) -> None:
    # At Hugging Face's initialisation every frame looks alike; wide weights tell them apart.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def save_video_model(path: Path, grid: int = 5) -> None:
    """LLaVA-OneVision with a SigLIP tower of grid x grid patches."""
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **_vision(grid * PATCH, vision_use_head=False),
        },
        text_config={"model_type": "qwen2", **_text(64), "num_key_value_heads": 1},
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_token_index=62,
        video_token_index=63,
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _spread(model)
    model.save_pretrained(path)
    _write_pixels(path / "video_preprocessor_config.json", [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


def save_siglip(path: Path, image_size: int = 30, window: int = 8) -> None:
    """SigLIP: text closed by </s>, padded with it, pooled at the last position."""
    torch.manual_seed(1)
    tokenizer = _tokenizer(window, "$A </s>")
    tokenizer.save_pretrained(path)
    config = SiglipConfig(
        text_config=_text(len(tokenizer), max_position_embeddings=window),
        vision_config=_vision(image_size),
    )
    model = SiglipModel(config)
    _spread(model)
    model.save_pretrained(path)
    _write_pixels(path / "preprocessor_config.json", [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def save_clip(path: Path, image_size: int = 24, window: int = 8, **vision: int) -> None:
    """CLIP: text between <s> and </s>, pooled at the first </s>. `vision` are other tower sizes."""
    torch.manual_seed(2)
    tokenizer = _tokenizer(window, "<s> $A </s>")
    tokenizer.save_pretrained(path)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config=_text(len(tokenizer), max_position_embeddings=window, **ids),
        vision_config=_vision(image_size, **vision),
        projection_dim=12,
    )
    model = CLIPModel(config)
    _spread(model)
    model.save_pretrained(path)
    _write_pixels(path / "preprocessor_config.json", [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])


def _tokenizer(window: int, template: str) -> PreTrainedTokenizerFast:
    names = ["<unk>", "<pad>", *sorted(set(" ".join(WORDS).split())), "<s>", "</s>"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, names.index(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=window,
        unk_token="<unk>",
        pad_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
    )


def _write_pixels(path: Path, mean: list[float], std: list[float]) -> None:
    path.write_text(json.dumps({"image_mean": mean, "image_std": std}))
