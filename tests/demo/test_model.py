"""The video model loads, its prompts are right, and its features separate scenes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from metok_vllm.demo import SAMPLE_QUESTION

Part = dict[str, str]
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def test_loads_without_missing_or_unexpected_weights(video_model: Any) -> None:
    _, info = video_model
    assert not any(info.values()), info


def test_tokenizer_gives_back_any_text(processor: Any) -> None:
    text = "Hello, World! It's 2024: naïve café,\n\n  日本語 🎬 tabs\tand so on."
    assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    "token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<image>", "<video>"]
)
def test_special_tokens_are_one_token_and_hidden_in_answers(processor: Any, token: str) -> None:
    ids = processor.tokenizer(f"a{token}b").input_ids
    assert len(ids) == 3
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "Hi?"}], "<|im_start|>user\nHi?<|im_end|>"),
        (
            [{"role": "user", "content": [_text("What?"), VIDEO]}],
            "<|im_start|>user <video>\nWhat?<|im_end|>",
        ),
        (
            [{"role": "user", "content": [IMAGE, IMAGE, _text("Same?")]}],
            "<|im_start|>user <image><image>\nSame?<|im_end|>",
        ),
        (
            [
                {"role": "system", "content": [_text("Be brief.")]},
                {"role": "user", "content": [VIDEO, _text("Who?")]},
                {"role": "assistant", "content": [_text("A fish.")]},
                {"role": "user", "content": [_text("Where?")]},
            ],
            (
                "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user <video>\nWho?<|im_end|>"
                "<|im_start|>assistant\nA fish.<|im_end|><|im_start|>user\nWhere?<|im_end|>"
            ),
        ),
        ([{"role": "assistant", "content": None}], "<|im_start|>assistant<|im_end|>"),
    ],
    ids=["text", "video", "images", "multi-turn", "empty"],
)
def test_chat_template(processor: Any, messages: list[dict[str, Any]], expected: str) -> None:
    for apply in (processor.tokenizer.apply_chat_template, processor.apply_chat_template):
        if apply == processor.apply_chat_template and messages[0]["content"] is None:
            continue  # Hugging Face's processor itself insists on content
        assert apply(messages, tokenize=False) == expected
        prompt = apply(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == expected + "<|im_start|>assistant\n"


def test_mean_features_are_alike_in_a_scene_and_differ_at_cuts(
    video_model: Any, processor: Any, frames: np.ndarray, at_cut: np.ndarray
) -> None:
    model, _ = video_model
    pixels = processor.video_processor(frames, return_tensors="pt").pixel_values_videos[0]
    with torch.inference_mode():
        tower = model.model.vision_tower(pixels, output_hidden_states=True)
        features = model.model.multi_modal_projector(tower.hidden_states[-1])
    assert features.shape == (60, 8 * 8, 128)
    mean = features.mean(1)
    cosine = cosine_similarity(mean[:-1], mean[1:]).numpy()
    assert at_cut.sum() == 5
    assert cosine[at_cut].max() < cosine[~at_cut].min() - 0.1


def test_answer_depends_on_video_and_question(
    video_model: Any, processor: Any, frames: np.ndarray
) -> None:
    model, _ = video_model

    def logprobs(question: str, video: np.ndarray) -> torch.Tensor:
        message = {"role": "user", "content": [VIDEO, _text(question)]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = processor(text=prompt, videos=[video], return_tensors="pt")
        # Four frames at stride 2 and one newline.
        assert (inputs.input_ids == processor.video_token_id).sum() == 4 * 4 * 4 + 1
        with torch.inference_mode():
            logits: torch.Tensor = model(**inputs, logits_to_keep=1).logits
        return logits[0, -1].log_softmax(-1)

    plain = logprobs(SAMPLE_QUESTION, frames[::15])
    for other in (
        logprobs(SAMPLE_QUESTION, frames[::-15].copy()),
        logprobs("Which scene is last?", frames[::15]),
    ):
        assert (plain - other).abs().max() > 0.5
