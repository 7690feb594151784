"""Engines shared by the tests: one plain vLLM, one with METok, both in this process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from tests.untrained import ALIGNMENT_DIR, MODEL_DIR

ENGINE = {
    "model": str(MODEL_DIR),
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 8192,
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 16,
    "max_logprobs": 20,
    "limit_mm_per_prompt": {"image": 2, "video": 3},
}


def make_engine(metok: dict[str, Any] | None) -> Any:
    """A real vLLM engine on the demo model; without METok when `metok` is None."""
    from vllm import LLM

    extra = {} if metok is None else {"additional_config": {"metok": metok}}
    return LLM(**ENGINE, **extra)


def stop_engine(engine: Any) -> None:
    engine.llm_engine.engine_core.shutdown()
    gc.collect()


@pytest.fixture(scope="session")
def plain() -> Iterator[Any]:
    """vLLM as it is: the plugin is installed and not asked for."""
    engine = make_engine(None)
    yield engine
    stop_engine(engine)


@pytest.fixture(scope="session")
def metok() -> Iterator[Any]:
    """vLLM with METok and separate alignment towers."""
    engine = make_engine({"alignment_model": str(ALIGNMENT_DIR)})
    yield engine
    stop_engine(engine)


def scenes(seed: int, lengths: tuple[int, ...], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames uint8 [T, H, W, 3]: one random still a scene, with a little noise a frame."""
    rng = np.random.default_rng(seed)
    shape = (*size, 3)
    frames = []
    for length in lengths:
        still = rng.integers(0, 256, shape).astype(np.float32)
        for _ in range(length):
            frames.append(np.clip(still + rng.normal(0, 6, shape), 0, 255))
    return np.stack(frames).astype(np.uint8)


def video(seed: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    """A video item as vLLM's loaders give it: frames and metadata, one frame a second."""
    frames = scenes(seed, lengths)
    T = len(frames)
    metadata = {
        "fps": 1.0,
        "duration": float(T),
        "total_num_frames": T,
        "frames_indices": list(range(T)),
        "do_sample_frames": False,
    }
    return frames, metadata


def ask(
    question: str,
    videos: list[Any] | None = None,
    images: list[Any] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A chat prompt in the demo model's template, with media in front of the question."""
    media = "<image>" * len(images or []) + "<video>" * len(videos or [])
    prompt: dict[str, Any] = {
        "prompt": f"<|im_start|>user {media}\n{question}<|im_end|><|im_start|>assistant\n"
    }
    data = {"video": videos, "image": images}
    data = {k: v for k, v in data.items() if v}
    if data:
        prompt["multi_modal_data"] = data
    if options is not None:
        prompt["mm_processor_kwargs"] = {"metok": options}
    return prompt


def answer(engine: Any, prompts: list[dict[str, Any]], tokens: int = 12) -> list[Any]:
    """Greedy answers with their log-probabilities, one RequestOutput a prompt."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=tokens, temperature=0, logprobs=5, ignore_eos=True)
    return list(engine.generate(prompts, params, use_tqdm=False))


def token_ids(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def logprobs(output: Any) -> list[float]:
    """Log-probability of each chosen token."""
    completion = output.outputs[0]
    return [
        step[token].logprob
        for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
    ]


def forget_caches(engine: Any) -> None:
    """Empty the processor, encoder and prefix caches."""
    engine.reset_mm_cache()
    engine.reset_prefix_cache()
    engine.llm_engine.reset_encoder_cache()
