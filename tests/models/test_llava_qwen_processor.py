"""Pixels and placeholders of LLaVA-NeXT's own layout, against PIL and the published tile rule.

Shape suffixes: T frames or tiles, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from metok_vllm.models.llava_qwen_config import LlavaQwenConfig
from metok_vllm.models.llava_qwen_processor import (
    CHAT_TEMPLATE,
    add_placeholders,
    make_processor,
    normalisation,
)
from tests.engine.prompts import scenes
from tests.reference.llava_qwen import best_resolution
from tests.reference.llava_qwen_checkpoint import LLAVA_VIDEO, LONGVA, Published, write_checkpoint

# Two bicubic interpolations of noise differ by more than two grey levels in a hundredth of it.
GREY_LEVELS, SHARE = 2, 0.98


@pytest.fixture(scope="module", params=[LONGVA, LLAVA_VIDEO], ids=["CLIP", "SigLIP"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Published fields, configuration and processor of a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("published") / "model"
    published: Published = request.param
    write_checkpoint(folder, published)
    config = LlavaQwenConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_placeholders(tokenizer)
    return published, config, make_processor(config, tokenizer)


def normalised(picture: Image.Image, config: Any) -> Tensor:
    pixels = normalisation(config)
    values_HWC = np.asarray(picture, np.float32) / 255
    values_CHW = torch.from_numpy(values_HWC).permute(2, 0, 1)
    mean, std = (torch.tensor(each)[:, None, None] for each in (pixels.mean, pixels.std))
    return (values_CHW - mean) / std


def assert_same_pixels(found: Tensor, expected: Tensor, config: Any) -> None:
    level = 1 / 255 / min(normalisation(config).std)
    near = (found - expected).abs() <= GREY_LEVELS * level + 1e-5
    assert near.float().mean() >= SHARE


def test_frames_are_cropped_for_clip_and_squeezed_for_siglip(made: Any) -> None:
    published, config, processor = made
    frames = scenes(1, (2, 1), size=(90, 140))
    found = processor.video_processor(
        [torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt"
    )["pixel_values_videos"][0]
    side = published.side
    for frame, pixels_CHW in zip(frames, found, strict=True):
        picture = Image.fromarray(frame)
        if published.tower == "clip":
            width = int(140 * side / 90)
            picture = picture.resize((width, side), Image.Resampling.BICUBIC)
            left = (width - side) // 2
            picture = picture.crop((left, 0, left + side, side))
        else:
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        assert pixels_CHW.shape == (3, side, side)
        assert_same_pixels(pixels_CHW, normalised(picture, config), config)


@pytest.mark.parametrize("size", [(90, 140), (140, 60), (64, 64)])
def test_images_are_a_base_tile_and_tiles_of_a_padded_canvas(
    made: Any, size: tuple[int, int]
) -> None:
    published, config, processor = made
    height, width = size
    still = scenes(2, (1,), size=size)[0]
    picture, side = Image.fromarray(still), published.side
    found = processor.image_processor(picture, return_tensors="pt")["pixel_values"][0]

    choices = [(wide, high) for high, wide in config.image_grid_pinpoints]
    canvas = best_resolution(width, height, choices)
    scale = min(canvas[0] / width, canvas[1] / height)
    inner = (min(-(-width * scale // 1), canvas[0]), min(-(-height * scale // 1), canvas[1]))
    inner = (int(inner[0]), int(inner[1]))
    whole = Image.new("RGB", canvas)
    corner = ((canvas[0] - inner[0]) // 2, (canvas[1] - inner[1]) // 2)
    whole.paste(picture.resize(inner, Image.Resampling.BICUBIC), corner)
    tiles = [picture.resize((side, side), Image.Resampling.BICUBIC)]
    for top in range(0, canvas[1], side):
        for left in range(0, canvas[0], side):
            tiles.append(whole.crop((left, top, left + side, top + side)))
    assert len(found) == len(tiles)
    for pixels_CHW, tile in zip(found, tiles, strict=True):
        assert_same_pixels(pixels_CHW, normalised(tile, config), config)


def test_the_placeholders_follow_the_vocabulary(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", LONGVA)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    words = len(tokenizer)
    own = tokenizer.chat_template
    add_placeholders(tokenizer)
    add_placeholders(tokenizer)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [words, words + 1]
    assert tokenizer("a <video>b")["input_ids"].count(words + 1) == 1
    turns = [{"role": "user", "content": "<video>\nWhy?"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat_template == own
    tokenizer.chat_template = None
    add_placeholders(tokenizer)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert whole == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
