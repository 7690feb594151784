"""Tiny checkpoints of Qwen2.5-VL, Qwen3-VL and Qwen3.5 as the hub's repositories hold them.

Weights are random, by Hugging Face's shapes under the published names: calm enough that float32
runs agree closely, discriminating enough that a dropped token or a wrong position shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from tests.reference import qwen3_5
from tests.reference.qwen3_5 import HYBRID, QWEN3_5, QWEN3_5_MOE
from tests.reference.qwen_vl_config import (
    FIRST_SPECIAL,
    ID_OF,
    MEDIA,
    QWEN2_5_VL,
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN_VL,
)
from tests.reference.staged_checkpoint import DEMO, STD, load_whole

CLASSES: dict[str, Any] = {
    QWEN2_5_VL: Qwen2_5_VLForConditionalGeneration,
    QWEN3_VL: Qwen3VLForConditionalGeneration,
    QWEN3_VL_MOE: Qwen3VLMoeForConditionalGeneration,
    QWEN3_5: Qwen3_5ForConditionalGeneration,
    QWEN3_5_MOE: Qwen3_5MoeForConditionalGeneration,
}
PUBLISHED = {**QWEN_VL, **HYBRID}
# Norms of queries and keys undo a gain of their weights, so these norms have it instead: both ways
# attention scores have a standard deviation of about 2.4. Routers are spread for the same reason.
GAIN, NORM_GAIN, ROUTER_GAIN = 1.75, 1.5, 4.0


def write_checkpoint(folder: Path, family: str, seed: int = 0, layers: int | None = None) -> None:
    """Write what such a repository on the hub holds; the same bytes for the same arguments.

    `layers` are those of the decoder, if not the family's.
    """
    folder.mkdir(parents=True)
    published = PUBLISHED[family]
    _write_tokenizer(folder, published.chat_template)
    shutil.copyfile(DEMO / "generation_config.json", folder / "generation_config.json")
    config = published.config()
    if layers is not None:  # a flat file has no text_config
        config.get("text_config", config)["num_hidden_layers"] = layers
    for name, content in ({"config.json": config} | published.files).items():
        _write(folder / name, content)
    state = _weights(family, AutoConfig.from_pretrained(folder), seed)
    if family in HYBRID:
        state = qwen3_5.published(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> Any:
    """The whole model in Hugging Face: float32, eager attention, every weight from the file."""
    family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    return load_whole(CLASSES[family], folder)


def _weights(family: str, config: Any, seed: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = CLASSES[family](config).state_dict()
    return {
        _published_name(family, name): _random(family, name, like, seed)
        for name, like in shapes.items()
    }


def _published_name(family: str, name: str) -> str:
    """Qwen2.5-VL was published before Hugging Face renamed its parts."""
    if family != QWEN2_5_VL:
        return name
    for prefix, published in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    return name


def _random(family: str, name: str, like: Tensor, seed: int) -> Tensor:
    """A tensor with a random stream of its own, seeded by its name."""
    if family in HYBRID and (own := qwen3_5.own_weight(name, like, seed)) is not None:
        return own
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return torch.full(like.shape, NORM_GAIN)
    if "norm" in name or ".ln_q." in name:
        return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)
    rng = np.random.default_rng([seed, *name.encode()])
    tensor = torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)) * STD
    if family == QWEN2_5_VL and name.endswith(("q_proj.weight", "k_proj.weight")):
        tensor *= GAIN
    if name.endswith("mlp.gate.weight"):
        tensor *= ROUTER_GAIN
    # Qwen3-VL's published experts are stored as inputs x outputs, unlike every other matrix.
    transposed = family == QWEN3_VL_MOE and ".mlp.experts." in name
    return tensor.transpose(1, 2).contiguous() if transposed else tensor


def _write_tokenizer(folder: Path, chat_template: str) -> None:
    """The demo's words with Qwen's special tokens."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(tokenizer["model"]["vocab"]) == FIRST_SPECIAL
    like = tokenizer["added_tokens"][0]
    added = [{**like, "id": number, "content": token} for token, number in ID_OF.items()]
    _write(folder / "tokenizer.json", {**tokenizer, "added_tokens": added})
    settings = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("image_token", "video_token", "processor_class"):
        del settings[name]
    settings["additional_special_tokens"] = [t for t in ID_OF if t != "<|endoftext|>"]
    assert set(MEDIA) < set(settings["additional_special_tokens"])
    _write(folder / "tokenizer_config.json", {**settings, "chat_template": chat_template})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
