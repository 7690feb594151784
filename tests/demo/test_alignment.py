"""The alignment towers are a SigLIP that any Hugging Face code can load and use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cosine_similarity

from metok_vllm.demo import ALIGNMENT_DIR

QUERIES = ["What is in the black scene?", "Is there a red circle?", "Which scene is last?"]


def test_loads_as_siglip_without_missing_weights(alignment_model: Any) -> None:
    model, info = alignment_model
    assert type(model).__name__ == "SiglipModel"
    assert not any(info.values()), info


def test_tokenizer_is_siglips() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(ALIGNMENT_DIR)
    assert tokenizer.is_fast
    batch = tokenizer(QUERIES, padding="max_length", truncation=True)
    assert list(batch) == ["input_ids"]
    assert [len(ids) for ids in batch.input_ids] == [64] * 3
    end = tokenizer.eos_token_id
    assert end == tokenizer.pad_token_id
    ids = tokenizer("A Red, BALL!").input_ids
    assert ids == tokenizer("a red ball").input_ids
    assert ids[-1] == end
    long = tokenizer("the red ball " * 100, truncation=True).input_ids
    assert (len(long), long[-1]) == (64, end)


def test_queries_get_different_embeddings(alignment_model: Any) -> None:
    model, _ = alignment_model
    tokenizer = transformers.AutoTokenizer.from_pretrained(ALIGNMENT_DIR)
    batch = tokenizer(QUERIES, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        text = model.get_text_features(**batch).pooler_output
    assert text.shape == (3, 128)
    cosine = cosine_similarity(text[:, None], text[None], dim=-1)
    assert cosine[~torch.eye(3, dtype=torch.bool)].max() < 0.8


def test_image_embeddings_are_alike_in_a_scene_and_differ_at_cuts(
    alignment_model: Any, frames: np.ndarray, at_cut: np.ndarray
) -> None:
    model, _ = alignment_model
    images = transformers.AutoImageProcessor.from_pretrained(ALIGNMENT_DIR)
    pixels = images(list(frames), return_tensors="pt").pixel_values
    with torch.inference_mode():
        embedding = model.get_image_features(pixel_values=pixels).pooler_output
    cosine = cosine_similarity(embedding[:-1], embedding[1:]).numpy()
    assert cosine[at_cut].max() < cosine[~at_cut].min() - 0.1
