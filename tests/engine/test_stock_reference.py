"""Without stages, vLLM and the reference decoder agree on the staged checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor

from tests.engine.engines import render
from tests.engine.prompts import chat_prompt
from tests.engine.staged import StagedEngine
from tests.reference.decoder import LanguageModel, generate
from tests.reference.staged_checkpoint import embed_prompt

pytestmark = pytest.mark.slow

BOUNDARIES, NEW_TOKENS = (2, 4, 6), 12


@pytest.mark.parametrize("with_video", [False, True])
def test_vllm_answers_as_the_reference_without_stages(
    stock: StagedEngine,
    staged_checkpoint: Path,
    staged_model: Any,
    staged_reference: LanguageModel,
    with_video: bool,
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
    prompt = chat_prompt("where does the red ball go?", videos=[frames] if with_video else None)
    answer = stock.answer_alone(prompt, NEW_TOKENS)
    ids = list(render(stock.llm, prompt)["prompt_token_ids"])

    visual: dict[int, Tensor] = {}
    if with_video:
        tokens_MD = video_features(staged_model, staged_checkpoint, frames)
        token = staged_model.config.video_token_id
        # 8 x 8 patches at stride 2, six frames, one newline.
        assert ids.count(token) == len(tokens_MD) == 6 * 16 + 1
        visual[ids.index(token)] = tokens_MD
    embeds_ND = embed_prompt(staged_reference, ids, visual)
    expected = generate(staged_reference, embeds_ND, [], BOUNDARIES, NEW_TOKENS, stages=())
    assert answer.error(expected) <= 2e-4


@torch.no_grad()
def video_features(model: Any, folder: Path, frames: np.ndarray) -> Tensor:
    """The model's own visual tokens [M, D] of one video, newline included."""
    processor = AutoProcessor.from_pretrained(folder).video_processor
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
    features: Tensor = model.model.get_video_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="full"
    ).pooler_output[0]
    return features
