"""In-process engines for paired measurements: plain vLLM and METok on one checkpoint.

Weights are random (`--load-format dummy`), because times do not depend on them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# vLLM reads these at import. One process allows timing inside a step.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np

from metok_vllm.demo import MODEL_DIR


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int


def write_config(folder: Path, decoder: Decoder) -> None:
    """Write the demo model's files with another decoder and without weights."""
    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {
        "num_hidden_layers": decoder.layers,
        "max_window_layers": decoder.layers,
        "hidden_size": decoder.hidden,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "intermediate_size": decoder.intermediate,
    }
    (folder / "config.json").write_text(json.dumps(config))


def start(model: Path, metok: dict[str, Any] | None, **settings: Any) -> Any:
    """An engine on a checkpoint without weights; plain vLLM if `metok` is None."""
    from vllm import LLM

    extra = {} if metok is None else {"additional_config": {"metok": metok}}
    defaults: dict[str, Any] = {
        "load_format": "dummy",
        "enforce_eager": True,
        "block_size": 32,
        "max_model_len": 8192,
        "max_num_batched_tokens": 8192,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }
    return LLM(str(model), **{**defaults, **settings, **extra})


def stop(engine: Any) -> None:
    """End an engine and free its memory."""
    engine.llm_engine.engine_core.shutdown()


def question(
    seed: int, frames: int, options: dict[str, Any] | None, videos: int = 1
) -> dict[str, Any]:
    """A prompt with videos of random scenes that depend on the seed."""
    rng = np.random.default_rng(seed)
    metadata_of: dict[str, Any] = {
        "fps": 1.0,
        "duration": float(frames),
        "total_num_frames": frames,
    }
    metadata_of |= {"frames_indices": list(range(frames)), "do_sample_frames": False}
    items = []
    for _ in range(videos):
        stills = rng.integers(0, 256, (5, 56, 56, 3), dtype=np.uint8)
        items.append((stills[np.arange(frames) * 5 // frames], metadata_of))
    asked = "<video>" * videos
    text = f"<|im_start|>user {asked}\nWhat happens?<|im_end|><|im_start|>assistant\n"
    prompt: dict[str, Any] = {"prompt": text, "multi_modal_data": {"video": items}}
    if options is not None:
        prompt["mm_processor_kwargs"] = {"metok": options}
    return prompt


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
