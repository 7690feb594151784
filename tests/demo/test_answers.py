"""The demo model answers rightly in Hugging Face's own code: the sample video and fresh ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metok_vllm.benchmarks.eventqa.clips import draw_questions
from metok_vllm.benchmarks.eventqa.drawing import pictures
from metok_vllm.demo import QUESTIONS


def answers(model: Any, processor: Any, video: np.ndarray, questions: list[str]) -> list[str]:
    """Greedy answers; the video's pixels are the same for all of them."""
    said = []
    for question in questions:
        parts = [{"type": "video"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True
        )
        inputs = processor(text=prompt, videos=[video], return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new = ids[0, inputs.input_ids.shape[1] :]
        said.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return said


def test_the_sample_video(video_model: Any, processor: Any, frames: np.ndarray) -> None:
    model, _ = video_model
    said = answers(model, processor, frames[::2], [q.question for q in QUESTIONS])
    right = [text == q.answer for text, q in zip(said, QUESTIONS, strict=True)]
    assert sum(right) >= len(QUESTIONS) - 1, list(zip(said, QUESTIONS, strict=True))


@pytest.mark.parametrize("length", [16, pytest.param(32, marks=pytest.mark.thorough)])
def test_videos_of_combinations_that_training_never_showed(
    video_model: Any, processor: Any, length: int
) -> None:
    model, _ = video_model
    right: list[bool] = []
    for story, questions in draw_questions(8, length, "test", 404):
        said = answers(model, processor, pictures(story, 224), [q.text for q in questions])
        right += [text == q.answer for text, q in zip(said, questions, strict=True)]
    # 95 % are right of thousands; of 64 questions now and then fewer.
    assert np.mean(right) >= 0.85, right
