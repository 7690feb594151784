"""Chat prompts with videos of random scenes, and the greedy answers of an engine to them."""

from __future__ import annotations

from typing import Any

import numpy as np


def scenes(seed: int, lengths: tuple[int, ...], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames uint8 [T, H, W, 3]: one random still per scene, with a little noise per frame."""
    rng = np.random.default_rng(seed)
    shape = (*size, 3)
    frames = []
    for length in lengths:
        still = rng.integers(0, 256, shape).astype(np.float32)
        for _ in range(length):
            frames.append(np.clip(still + rng.normal(0, 6, shape), 0, 255))
    return np.stack(frames).astype(np.uint8)


def video(seed: int, lengths: tuple[int, ...]) -> tuple[np.ndarray, dict[str, Any]]:
    """A video as vLLM's loaders return it: frames and metadata, one frame per second."""
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


def sampled_video(
    seed: int, lengths: tuple[int, ...], size: tuple[int, int], fps: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Every second frame of a video that has `2 * fps` frames a second."""
    frames = scenes(seed, lengths, size)
    T = len(frames)
    metadata = {
        "fps": 2 * fps,
        "duration": T / fps,
        "total_num_frames": 2 * T,
        "frames_indices": list(range(0, 2 * T, 2)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }
    return frames, metadata


def chat_prompt(
    question: str,
    videos: list[Any] | None = None,
    images: list[Any] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A prompt in the demo model's chat template, with the media before the question.

    `options` are the request's METok settings.
    """
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
    """Greedy answers of exactly `tokens` tokens with log-probabilities: a RequestOutput each."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=tokens, temperature=0, logprobs=5, ignore_eos=True)
    return list(engine.generate(prompts, params, use_tqdm=False))


def token_ids(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


def logprobs(output: Any) -> list[float]:
    """Log-probability of each token of the answer."""
    completion = output.outputs[0]
    return [
        step[token].logprob
        for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
    ]
