"""A tiny LLaVA-OneVision checkpoint in its published layout, deep enough for three pruning layers.

The demo's tokenizer, chat template and settings at other sizes, with random float32 weights:
calm enough that float32 runs agree closely, discriminating enough that a dropped token shows.
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
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tests.reference.decoder import LanguageModel

DEMO = Path(__file__).resolve().parents[2] / "metok_vllm" / "demo" / "model"

# Hugging Face's names in memory and those of published files, the longest first.
PUBLISHED_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.": "",
}
# At 0.15 such a model is chaotic, at 0.02 its answer hardly depends on the video. Queries and
# keys are larger, because attention over hundreds of tokens would be flat otherwise.
STD, QUERY_KEY_GAIN = 0.08, 2.5


@dataclass(frozen=True)
class Sizes:
    """Shapes of the checkpoint. The vision tower is as wide as the decoder and has two layers."""

    layers: int = 8
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 256
    image: int = 64
    patch: int = 8

    @property
    def grid(self) -> int:
        return self.image // self.patch


def write_checkpoint(folder: Path, sizes: Sizes = Sizes(), seed: int = 0) -> None:
    """Write every file that vLLM and Hugging Face need; the same bytes for the same arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / name, folder / name)
    shutil.copyfile(DEMO / "generation_config.json", folder / "generation_config.json")

    config = _demo_file("config.json")
    sides = (sizes.image, 2 * sizes.image)
    pinpoints = [[height, width] for height in sides for width in sides]
    config |= {"image_grid_pinpoints": pinpoints, "torch_dtype": "float32"}
    config["text_config"] |= {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "max_window_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "torch_dtype": "float32",
    }
    config["vision_config"] |= {
        "hidden_size": sizes.hidden,
        "image_size": sizes.image,
        "intermediate_size": sizes.intermediate,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": 2,
        "patch_size": sizes.patch,
    }
    _write(folder / "config.json", config)
    processor = _demo_file("processor_config.json") | {"num_image_tokens": sizes.grid**2}
    _write(folder / "processor_config.json", processor)
    size = {"size": {"height": sizes.image, "width": sizes.image}}
    image = _demo_file("preprocessor_config.json") | size | {"image_grid_pinpoints": pinpoints}
    _write(folder / "preprocessor_config.json", image)
    video = _demo_file("video_preprocessor_config.json") | size
    _write(folder / "video_preprocessor_config.json", video)

    state = random_weights(LlavaOnevisionConfig.from_pretrained(folder), seed)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(config: Any, seed: int) -> dict[str, Tensor]:
    """Tensors by their published names; each has a random stream of its own, seeded by its name."""
    with torch.device("meta"):
        shapes = LlavaOnevisionForConditionalGeneration(config).state_dict()
    state = {}
    for name, like in shapes.items():
        if "norm" in name:
            tensor = torch.full(like.shape, 1.0 if name.endswith("weight") else 0.0)
        else:
            rng = np.random.default_rng([seed, *name.encode()])
            tensor = torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)) * STD
        if "language_model" in name and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor *= QUERY_KEY_GAIN
        state[published_name(name)] = tensor
    return state


def published_name(name: str) -> str:
    for prefix, published in PUBLISHED_NAMES.items():
        if name.startswith(prefix):
            return published + name.removeprefix(prefix)
    raise AssertionError(name)


def load_model(folder: Path) -> Any:
    """The whole model in Hugging Face: float32, eager attention, every weight from the file."""
    return load_whole(LlavaOnevisionForConditionalGeneration, folder)


def load_whole(cls: Any, folder: Path) -> Any:
    """A Hugging Face model of class `cls`; ValueError unless every weight is from the file."""
    model, info = cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise ValueError(f"the checkpoint's weights do not fit the model: {info}")
    return model.eval()


def language_model(model: Any) -> LanguageModel:
    """The part of a loaded model that the reference decoder runs."""
    return LanguageModel(model.model.language_model, model.lm_head)


@torch.no_grad()
def embed_prompt(model: LanguageModel, token_ids: list[int], visual: dict[int, Tensor]) -> Tensor:
    """Prompt embeddings [N, D]: rows of the table, and from each key of `visual` on its rows."""
    embeds_ND: Tensor = model.decoder.embed_tokens(torch.tensor(token_ids)).clone()
    for start, rows_MD in visual.items():
        embeds_ND[start : start + len(rows_MD)] = rows_MD
    return embeds_ND


def _demo_file(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEMO / name).read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
