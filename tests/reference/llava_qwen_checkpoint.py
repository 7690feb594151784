"""Tiny checkpoints in LLaVA-NeXT's own layout: LongVA's, LLaVA-Video's and LLaVA-OneVision's.

config.json has the fields that the published training code writes, the vision tower is only named
there, the tokenizer knows no placeholders, and the weights lie in shards under their published
names. Layers and widths are the staged checkpoint's.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.reference.staged_checkpoint import DEMO, QUERY_KEY_GAIN, STD

SHARDS = 3
# The chat template of Qwen2-7B-Instruct's tokenizer, which the published checkpoints ship.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Published:
    """What tells the published models apart, and the sizes of a tiny one.

    `side` and `patch` are the tower's, in pixels; `heads` and widths are alike in both parts.
    """

    tower: str
    side: int
    patch: int
    fields: dict[str, Any]
    layers: int = 8
    hidden: int = 128
    tower_hidden: int = 64
    heads: int = 4
    kv_heads: int = 2

    @property
    def grid(self) -> int:
        return self.side // self.patch


_ANYRES = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"}
LONGVA = Published(
    "clip",
    64,
    8,
    {
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]],
        "mm_patch_merge_type": "unires",
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2,
    },
)
# Seven patches a side: pooling rounds up, as with the published 27.
LLAVA_VIDEO = Published(
    "siglip",
    56,
    8,
    {
        **_ANYRES,
        "add_faster_video": False,
        "image_grid_pinpoints": "(1x1),...,(3x3)",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
    },
)
LLAVA_ONEVISION = Published("siglip", 56, 8, {**_ANYRES, "image_grid_pinpoints": "(1x1),...,(3x3)"})
FAMILIES = {
    "longva": LONGVA,
    "llava_video": LLAVA_VIDEO,
    "llava_onevision_original": LLAVA_ONEVISION,
}


def write_checkpoint(folder: Path, published: Published, seed: int = 0) -> None:
    """Write what such a repository on the hub holds; the same bytes for the same arguments."""
    folder.mkdir(parents=True)
    tower_folder = folder.with_name(f"{folder.name}-vision-tower")
    tower_config = _tower_config(published)
    tower_config.save_pretrained(tower_folder)
    _write_tokenizer(folder)
    shutil.copyfile(DEMO / "generation_config.json", folder / "generation_config.json")
    text = {
        "attention_dropout": 0.0,
        "bos_token_id": 1019,
        "eos_token_id": 1021,
        "hidden_act": "silu",
        "hidden_size": published.hidden,
        "initializer_range": 0.02,
        "intermediate_size": 2 * published.hidden,
        "max_position_embeddings": 32768,
        "max_window_layers": published.layers,
        "num_attention_heads": published.heads,
        "num_hidden_layers": published.layers,
        "num_key_value_heads": published.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 1024,
    }
    config = {
        **text,
        "architectures": ["LlavaQwenForCausalLM"],
        "image_crop_resolution": 224,
        "image_split_resolution": 224,
        "mm_hidden_size": tower_config.hidden_size,
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower_folder),
        "mm_vision_tower_lr": 2e-06,
        "model_type": "llava_qwen",
        "rope_scaling": None,
        "tokenizer_model_max_length": 32768,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "use_mm_proj": True,
        "vision_tower_pretrained": None,
        **published.fields,
    }
    _write(folder / "config.json", config)
    _write_shards(folder, _weights(text, tower_config, published, seed))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint by their published names."""
    from safetensors.torch import load_file

    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    state: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        state |= load_file(folder / name)
    assert state.keys() == index["weight_map"].keys()
    return state


def _tower_config(published: Published) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": published.tower_hidden,
        "image_size": published.side,
        "intermediate_size": 2 * published.tower_hidden,
        "num_attention_heads": published.heads,
        "num_hidden_layers": 3,
        "patch_size": published.patch,
    }
    if published.tower == "clip":
        return CLIPVisionConfig(**sizes, projection_dim=32)
    return SiglipVisionConfig(**sizes)


def _weights(
    text: dict[str, Any], tower_config: Any, published: Published, seed: int
) -> dict[str, Tensor]:
    with torch.device("meta"):
        shapes = dict(Qwen2ForCausalLM(Qwen2Config(**text)).state_dict())
        tower = (CLIPVisionModel if published.tower == "clip" else SiglipVisionModel)(tower_config)
    for name, like in tower.state_dict().items():
        # The published code deletes SigLIP's last layer and its pooling head before it trains.
        if published.tower == "siglip" and (".layers.2." in name or ".head." in f".{name}"):
            continue
        inside = name if name.startswith("vision_model.") else f"vision_model.{name}"
        shapes[f"model.vision_tower.vision_tower.{inside}"] = like
    width, hidden = tower_config.hidden_size, text["hidden_size"]
    for number, inputs in ((0, width), (2, hidden)):
        shapes[f"model.mm_projector.{number}.weight"] = torch.empty(hidden, inputs, device="meta")
        shapes[f"model.mm_projector.{number}.bias"] = torch.empty(hidden, device="meta")
    if "unpad" in published.fields["mm_patch_merge_type"]:
        shapes["model.image_newline"] = torch.empty(hidden, device="meta")
    return {
        name: _random(name, like, seed)
        for name, like in shapes.items()
        if not name.endswith("position_ids")
    }


def _random(name: str, like: Tensor, seed: int) -> Tensor:
    if "norm" in name or "layrnorm" in name:
        return torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)
    rng = np.random.default_rng([seed, *name.encode()])
    tensor = torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)) * STD
    if name.startswith("model.layers.") and name.endswith(("q_proj.weight", "k_proj.weight")):
        tensor *= QUERY_KEY_GAIN
    # Pixels of natural size would leave random towers nearly blind.
    return tensor * 2 if "vision_tower" in name else tensor


def _write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    names = sorted(state)
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {name: state[name] for name in names[number::SHARDS]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write(folder / "model.safetensors.index.json", index)


def _write_tokenizer(folder: Path) -> None:
    """The demo's tokenizer without the two placeholders, as Qwen2's is."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    media = ("<image>", "<video>")
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] not in media]
    _write(folder / "tokenizer.json", tokenizer)
    settings = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("image_token", "video_token", "processor_class"):
        del settings[name]
    _write(folder / "tokenizer_config.json", {**settings, "chat_template": CHAT_TEMPLATE})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
