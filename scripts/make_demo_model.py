"""Write the demo checkpoint: LLaVA-OneVision in its published layout, and alignment towers.

The weights are random (see `demo_weights.py`) and always the same. Run from the repository root:
`python -m scripts.make_demo_model`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from scripts.demo_tokenizer import (
    CHAT_SPECIAL,
    write_alignment_tokenizer,
    write_chat_tokenizer,
    write_json,
)
from scripts.demo_weights import Sizes, State, alignment_model, video_model

SEED = 20250602
CHAT_TEMPLATE = Path(__file__).resolve().parent / "demo_chat_template.jinja"


def write_model(folder: Path, sizes: Sizes) -> None:
    """All files of the video model, alignment towers excepted."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_chat_tokenizer(folder, sizes.vocab)
    ids = {token: tokenizer.get_vocab()[token] for token in CHAT_SPECIAL}
    _save(video_model(sizes, SEED, tokenizer), folder)
    write_json(folder / "config.json", model_config(sizes, ids))
    generation = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    write_json(folder / "generation_config.json", generation)
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


def write_alignment(folder: Path, sizes: Sizes) -> None:
    """A SigLIP checkpoint with both towers, its tokenizer and its image processor's settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_alignment_tokenizer(folder, sizes.text_vocab)
    _save(alignment_model(sizes, SEED), folder)
    config = {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {
            "bos_token_id": 1,
            "eos_token_id": 1,
            "hidden_size": sizes.width,
            "intermediate_size": sizes.tower_ffn,
            "max_position_embeddings": sizes.text_window,
            "model_type": "siglip_text_model",
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.text_layers,
            "pad_token_id": 1,
            "projection_size": sizes.width,
            "vocab_size": sizes.text_vocab,
        },
        "torch_dtype": "bfloat16",
        "vision_config": _vision_config(sizes),
    }
    write_json(folder / "config.json", config)
    image = _pixels(sizes) | {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "SiglipProcessor",
    }
    write_json(folder / "preprocessor_config.json", image)


def model_config(sizes: Sizes, ids: dict[str, int]) -> dict[str, Any]:
    """`config.json` with the fields of llava-hf/llava-onevision-qwen2-*-ov-hf."""
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": pinpoints(sizes),
        "image_token_index": ids["<image>"],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "hidden_act": "silu",
            "hidden_size": sizes.width,
            "initializer_range": 0.02,
            "intermediate_size": sizes.decoder_ffn,
            "max_position_embeddings": 32768,
            "max_window_layers": sizes.decoder_layers,
            "model_type": "qwen2",
            "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.decoder_layers,
            "num_key_value_heads": sizes.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            "vocab_size": sizes.vocab,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_image_newline_parameter": True,
        "video_token_index": ids["<video>"],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": _vision_config(sizes) | {"vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def pinpoints(sizes: Sizes) -> list[list[int]]:
    """Resolutions for single images: one or two tiles a side."""
    sides = (sizes.image, 2 * sizes.image)
    return [[height, width] for height in sides for width in sides]


def _vision_config(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "image_size": sizes.image,
        "intermediate_size": sizes.tower_ffn,
        "model_type": "siglip_vision_model",
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.tower_layers,
        "patch_size": sizes.patch,
    }


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


def _save(state: State, folder: Path) -> None:
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).resolve().parent.parent / "metok_vllm" / "demo" / "model"
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    out = parser.parse_args().out
    sizes = Sizes()
    write_model(out, sizes)
    write_alignment(out / "alignment", sizes)
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote the demo model, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
