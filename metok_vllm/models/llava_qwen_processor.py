"""Tokenizer and processor for checkpoints in LLaVA-NeXT's own layout, which ship only a tokenizer.

The published code marks media with an id outside of the vocabulary; here they are two tokens after
the vocabulary's last, as in Hugging Face's conversions of the same models.
Source: LLaVA-VL/LLaVA-NeXT at df179663, llava/{mm_utils.py, conversation.py} and
llava/model/multimodal_encoder; the image processors of the two vision towers on the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metok_vllm.alignment import Normalisation

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"
# `conv_qwen`, which the published examples use; the tokenizers of the checkpoints have their own.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


class LlavaQwenTokenizer:
    """Loads the tokenizer of a checkpoint and adds the placeholders, for vLLM's registry."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """vLLM's cached tokenizer with both placeholders and a chat template."""
        from transformers import AutoTokenizer
        from vllm.tokenizers.hf import get_cached_tokenizer

        kwargs["cache_dir"] = kwargs.pop("download_dir", None)
        tokenizer = AutoTokenizer.from_pretrained(path, *args, **kwargs)
        add_placeholders(tokenizer)
        return get_cached_tokenizer(tokenizer)


def add_placeholders(tokenizer: Any) -> None:
    """Add the placeholders, and the published chat template if the tokenizer has none."""
    tokenizer.add_tokens([IMAGE_TOKEN, VIDEO_TOKEN], special_tokens=True)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE


def is_clip(config: Any) -> bool:
    """Whether the vision tower of a LlavaQwenConfig is a CLIP."""
    return bool(config.vision_config.model_type == "clip_vision_model")


def normalisation(config: Any) -> Normalisation:
    """Pixel statistics and size of the vision tower's input."""
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip(config) else (SIGLIP_MEAN, SIGLIP_STD)
    return Normalisation(mean, std, int(config.vision_config.image_size))


def make_processor(config: Any, tokenizer: Any) -> Any:
    """A LlavaOnevisionProcessor as the published code prepares images and frames.

    CLIP's processor resizes a frame's shorter edge and crops its centre, SigLIP's squeezes it.
    """
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    pixels = normalisation(config)
    square = {"height": pixels.size, "width": pixels.size}
    statistics = {"image_mean": list(pixels.mean), "image_std": list(pixels.std)}
    frames: dict[str, Any] = {"size": square}
    if is_clip(config):
        frames = {"size": {"shortest_edge": pixels.size}, "crop_size": square}
        frames |= {"do_center_crop": True}
    grid = pixels.size // int(config.vision_config.patch_size)
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            size=square, image_grid_pinpoints=config.image_grid_pinpoints, **statistics
        ),
        video_processor=LlavaOnevisionVideoProcessor(**frames, **statistics),
        tokenizer=tokenizer,
        num_image_tokens=grid**2,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_token=IMAGE_TOKEN,
        video_token=VIDEO_TOKEN,
    )
