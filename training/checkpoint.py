"""Writes the trained model: LLaVA-OneVision and SigLIP in their published layouts, in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.decoder import Projector, Student
from training.sizes import (
    Sizes,
    alignment_config,
    model_config,
    pinpoints,
)
from training.tokenizers import (
    special_ids,
    write_alignment_tokenizer,
    write_chat_tokenizer,
    write_json,
)

State = dict[str, Tensor]
CHAT_TEMPLATE = Path(__file__).resolve().parent / "chat_template.jinja"
VIDEO_TOWER = "vision_tower."


def video_state(towers: Any, projector: Projector, student: Student, sizes: Sizes) -> State:
    """Weights of the video model by the names of llava-hf's checkpoints."""
    state: State = {"image_newline": student.newline.detach()}
    layers = f"vision_model.encoder.layers.{sizes.video_tower_layers}."
    for name, tensor in towers.state_dict().items():
        deeper = name.startswith("vision_model.encoder.layers.") and name >= layers
        if (
            name.startswith("vision_model.")
            and not name.startswith("vision_model.head.")
            and not deeper
        ):
            state[VIDEO_TOWER + name] = tensor
    for name, tensor in folded(projector).items():
        state[f"multi_modal_projector.{name}"] = tensor
    for name, tensor in student.decoder.state_dict().items():
        state[f"language_model.{name}"] = tensor
    return _rounded(state)


def folded(projector: Projector) -> State:
    """The projector's weights with the normalisation folded into `linear_1`."""
    with torch.no_grad():
        weight = projector.linear_1.weight / projector.scale
        bias = projector.linear_1.bias - weight @ projector.mean
    return {
        "linear_1.weight": weight,
        "linear_1.bias": bias,
        "linear_2.weight": projector.linear_2.weight.detach(),
        "linear_2.bias": projector.linear_2.bias.detach(),
    }


def write_checkpoint(folder: Path, sizes: Sizes, video: State, alignment: State) -> None:
    """All files of the demo model, alignment towers in `alignment/`."""
    write_model(folder, sizes, video)
    write_alignment(folder / "alignment", sizes, alignment)


def generation_config(ids: dict[str, int]) -> dict[str, int]:
    """`generation_config.json`."""
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def write_model(folder: Path, sizes: Sizes, state: State) -> None:
    """All files of the video model, alignment towers excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_chat_tokenizer(folder, sizes.vocab)
    ids = special_ids(tokenizer)
    _save(state, folder)
    write_json(folder / "config.json", model_config(sizes, ids))
    write_json(folder / "generation_config.json", generation_config(ids))
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")
    processor = {
        "image_token": "<image>",
        "num_image_tokens": sizes.grid**2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_select_strategy": "full",
    }
    write_json(folder / "processor_config.json", processor)
    image = _pixels(sizes) | {
        "do_convert_rgb": True,
        "do_pad": True,
        "image_grid_pinpoints": pinpoints(sizes),
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
    }
    write_json(folder / "preprocessor_config.json", image)
    video = _pixels(sizes) | {
        "do_convert_rgb": True,
        "processor_class": "LlavaOnevisionProcessor",
        "video_processor_type": "LlavaOnevisionVideoProcessor",
    }
    write_json(folder / "video_preprocessor_config.json", video)


def write_alignment(folder: Path, sizes: Sizes, state: State) -> None:
    """A SigLIP checkpoint with both towers, its tokenizer and its image processor's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_alignment_tokenizer(folder, sizes.text_vocab)
    _save(_rounded(state), folder)
    write_json(folder / "config.json", alignment_config(sizes))
    image = _pixels(sizes) | {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
    }
    write_json(folder / "preprocessor_config.json", image)


def _pixels(sizes: Sizes) -> dict[str, Any]:
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": sizes.image, "width": sizes.image},
    }


def _rounded(state: State) -> State:
    return {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def _save(state: State, folder: Path) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
