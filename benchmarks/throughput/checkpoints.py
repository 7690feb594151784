"""Checkpoints with the sizes of real models and random weights, written to a temporary folder.

Times do not depend on the values of weights. Answers do, so agreement on these checkpoints shows
only that two engines compute the same.

The tokenizer is the demo's, padded with unused words, so that embedding and output layer have the
real vocabulary's number of rows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from metok_vllm.benchmarks.throughput import qwen_checkpoint, weights
from metok_vllm.benchmarks.throughput.qwen_sizes import QWEN_SIZES, QwenSizes
from metok_vllm.benchmarks.throughput.sizes import CPU_FLAGS, SIZES, Sizes, Tower
from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR
from metok_vllm.errors import ConfigError

SEED = 0
ALL_SIZES: dict[str, Sizes | QwenSizes] = {**SIZES, **QWEN_SIZES}
NAMES = ("demo", *ALL_SIZES)


@dataclass(frozen=True)
class Checkpoint:
    """A model with `flags` for both servers and `metok_flags` for METok's alone."""

    name: str
    model: str
    flags: tuple[str, ...]
    metok_flags: tuple[str, ...]


@contextmanager
def checkpoint(name: str, parent: Path | None = None) -> Iterator[Checkpoint]:
    """The checkpoint `name` of NAMES in a temporary folder (below `parent`).

    Raises ConfigError for an unknown name.
    """
    if name == "demo":
        flags = ("--dtype", "float32", *CPU_FLAGS, "--served-model-name", name)
        yield Checkpoint(name, str(MODEL_DIR), flags, _aligned_by(ALIGNMENT_DIR))
        return
    if name not in ALL_SIZES:
        raise ConfigError(f"no checkpoint {name!r}; there are {', '.join(NAMES)}", "checkpoint")
    sizes = ALL_SIZES[name]
    with tempfile.TemporaryDirectory(prefix="metok-bench-", dir=parent) as folder:
        model, alignment = Path(folder) / "model", ALIGNMENT_DIR
        if isinstance(sizes, QwenSizes):
            qwen_checkpoint.write_model(model, sizes, SEED)
        else:
            write_model(model, sizes)
        if sizes.alignment is not None:
            alignment = Path(folder) / "alignment"
            write_alignment(alignment, sizes.alignment)
        named = (*sizes.flags, "--served-model-name", name)
        yield Checkpoint(name, str(model), named, _aligned_by(alignment))


def write_model(folder: Path, sizes: Sizes) -> None:
    """Write a LLaVA-OneVision in its published layout, with weights if `sizes` says so."""
    import transformers

    folder.mkdir()
    for name in ("chat_template.jinja", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(MODEL_DIR / name, folder / name)
    _write(folder / "tokenizer.json", _padded(_demo("tokenizer.json"), sizes.vocabulary))
    config = model_config(sizes)
    config["transformers_version"] = transformers.__version__
    _write(folder / "config.json", config)
    side = sizes.tower.image
    pinpoints = config["image_grid_pinpoints"]
    size = {"size": {"height": side, "width": side}}
    changes: dict[str, dict[str, Any]] = {
        "preprocessor_config.json": size | {"image_grid_pinpoints": pinpoints},
        "video_preprocessor_config.json": size,
        "processor_config.json": {"num_image_tokens": (side // sizes.tower.patch) ** 2},
    }
    for name, change in changes.items():
        _write(folder / name, _demo(name) | change)
    if sizes.real_weights:
        known = load_file(MODEL_DIR / "model.safetensors")
        hf_config = transformers.LlavaOnevisionConfig.from_pretrained(folder)
        weights.save(folder, weights.video_model_weights(hf_config, SEED, known))


def model_config(sizes: Sizes) -> dict[str, Any]:
    """The config.json of a LLaVA-OneVision of these sizes."""
    side = sizes.tower.image
    pinpoints = [[height, width] for height in (side, 2 * side) for width in (side, 2 * side)]
    config = _demo("config.json") | {"image_grid_pinpoints": pinpoints}
    config |= {"tie_word_embeddings": sizes.tied}
    config["text_config"] |= {
        "num_hidden_layers": sizes.layers,
        "max_window_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "intermediate_size": sizes.intermediate,
        "vocab_size": sizes.vocabulary,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": sizes.positions,
        "rope_theta": sizes.rope_theta,
    }
    config["vision_config"] |= _vision(sizes.tower)
    return config


def write_alignment(folder: Path, tower: Tower) -> None:
    """Write a SigLIP with weights; the text tower has the sizes of the image tower."""
    from transformers import SiglipConfig

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ALIGNMENT_DIR / name, folder / name)
    config = _demo("alignment/config.json")
    config["vision_config"] |= _vision(tower)
    config["text_config"] |= _transformer(tower) | {"projection_size": tower.hidden}
    _write(folder / "config.json", config)
    image = _demo("alignment/preprocessor_config.json")
    image["size"] = {"height": tower.image, "width": tower.image}
    _write(folder / "preprocessor_config.json", image)
    weights.save(folder, weights.alignment_weights(SiglipConfig.from_pretrained(folder), SEED))


def _aligned_by(folder: Path) -> tuple[str, ...]:
    return ("--metok-alignment-model", str(folder))


def _vision(tower: Tower) -> dict[str, int]:
    return _transformer(tower) | {"image_size": tower.image, "patch_size": tower.patch}


def _transformer(tower: Tower) -> dict[str, int]:
    return {
        "num_hidden_layers": tower.layers,
        "hidden_size": tower.hidden,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.intermediate,
    }


def _padded(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    vocabulary = tokenizer["model"]["vocab"]
    # Special tokens keep their ids only if the vocabulary contains them.
    vocabulary |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary |= {f"Ġ#{number}": number for number in range(len(vocabulary), size)}
    return tokenizer


def _demo(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL_DIR / name).read_text(encoding="utf-8"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
