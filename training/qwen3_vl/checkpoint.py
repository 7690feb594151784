"""Writes the model in the layout of Qwen/Qwen3-VL-*-Instruct, in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from training.checkpoint import generation_config
from training.qwen3_vl.decoder import Student
from training.qwen3_vl.sizes import MERGE, PATCH, TEMPORAL, UNIT, model_config
from training.qwen3_vl.tower import Tower
from training.qwen3_vl.vocabulary import special_ids, write_tokenizer
from training.tokenizers import write_json

CHAT_TEMPLATE = Path(__file__).resolve().parent / "chat_template.jinja"
LEAST_PIXELS = 2 * UNIT**2  # of an image, or of all frames of a video
FRAME_TOKENS = 16  # most for a pair of frames; larger frames are scaled down to it
VIDEO_PIXELS = 256 * FRAME_TOKENS * UNIT**2  # of all frames; longer videos have smaller frames


def write_model(folder: Path, tokenizer: Tokenizer, tower: Tower, student: Student) -> None:
    """All files of the model."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.visual.{k}": v for k, v in tower.visual.state_dict().items()}
    state |= {f"model.language_model.{k}": v for k, v in student.model.state_dict().items()}
    state["lm_head.weight"] = student.lm_head.weight.detach()
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    ids = special_ids(tokenizer)
    write_tokenizer(folder, tokenizer)
    write_json(folder / "config.json", model_config(ids))
    write_json(folder / "generation_config.json", generation_config(ids))
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")
    image = _pixels(FRAME_TOKENS * UNIT**2) | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    write_json(folder / "preprocessor_config.json", image)
    video = _pixels(VIDEO_PIXELS) | {
        "cap_pixels_per_frame": True,
        "max_video_tokens": FRAME_TOKENS,
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    write_json(folder / "video_preprocessor_config.json", video)


def _pixels(most: int) -> dict[str, Any]:
    return {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": MERGE,
        "patch_size": PATCH,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": most, "shortest_edge": LEAST_PIXELS},
        "temporal_patch_size": TEMPORAL,
    }
