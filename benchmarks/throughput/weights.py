"""Random weights in the layout of published checkpoints.

With Hugging Face's initialisation, attention over hundreds of tokens is flat and every question has
the same answer. Queries and keys are therefore drawn larger.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

# Prefixes of Hugging Face's names in memory and in published LLaVA-OneVision files, longest first.
PUBLISHED_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.": "",
}
STD, QUERY_KEY_GAIN = 0.02, 2.5
SHARD_BYTES = 1 << 30


def video_model_weights(
    config: Any, seed: int, known: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Published names and bfloat16 tensors of a LLaVA-OneVision, from `known` if the shape fits."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with torch.device("meta"):
        shapes = LlavaOnevisionForConditionalGeneration(config).state_dict()
    tied = config.text_config.tie_word_embeddings
    for name, like in shapes.items():
        published = published_name(name)
        if tied and name.startswith("lm_head."):
            continue
        if published in known and known[published].shape == like.shape:
            yield published, known[published]
        else:
            yield published, _draw(name, like.shape, seed)


def qwen_weights(config: Any, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names and bfloat16 tensors of a Qwen3-VL, whose files have Hugging Face's own names."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        shapes = AutoModelForImageTextToText.from_config(config).state_dict()
    for name, like in shapes.items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            yield name, _draw(name, like.shape, seed)


def alignment_weights(config: Any, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Names and bfloat16 tensors of a SigLIP with both towers."""
    from transformers import SiglipModel

    with torch.device("meta"):
        shapes = SiglipModel(config).state_dict()
    for name, like in shapes.items():
        yield name, _draw(name, like.shape, seed)


def published_name(name: str) -> str:
    """A tensor's name in published files. Raises ValueError for an unknown tensor."""
    for prefix, published in PUBLISHED_NAMES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    raise ValueError(f"no tensor of LLaVA-OneVision: {name}")


def save(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write safetensors files of about a gibibyte and their index, one shard in memory."""
    files: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(tensors), start=1):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, name))
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _shards(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _draw(name: str, shape: torch.Size, seed: int) -> Tensor:
    if "norm" in name:
        value = 1.0 if name.endswith("weight") else 0.0
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            value = math.sqrt(QUERY_KEY_GAIN)  # these norms undo a gain of the weights before them
        return torch.full(shape, value, dtype=torch.bfloat16)
    if name.startswith("logit_"):
        return torch.full(shape, math.log(10.0), dtype=torch.bfloat16)
    std = STD * (QUERY_KEY_GAIN if name.endswith(("q_proj.weight", "k_proj.weight")) else 1)
    # Each tensor has its own generator, so that it does not depend on the order.
    generator = torch.Generator().manual_seed(_number(f"{seed} {name}"))
    return torch.empty(shape).normal_(0, std, generator=generator).to(torch.bfloat16)


def _number(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % (2**63 - 25)
