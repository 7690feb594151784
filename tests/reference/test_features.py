"""The reference itself, held against Hugging Face's own batched paths on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from metok_vllm.config import METokConfig
from tests.reference import checkpoints, features, stage1

QUERY = "where is the red ball when does it fall and then who opened the door"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    checkpoints.save_video_model(root / "video")
    checkpoints.save_siglip(root / "siglip")
    checkpoints.save_clip(root / "clip")
    return root


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Nine random pictures as the video processor would normalise them: [9, 3, 30, 30]."""
    picture = torch.rand(9, 3, 30, 30, generator=torch.Generator().manual_seed(3))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    return (picture - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


@torch.no_grad()
def test_one_event_at_stride_2_is_the_models_own_input(root: Path, pixels: torch.Tensor) -> None:
    config = METokConfig(num_events=1, strides=(2, 2, 2))
    result = features.stage1_from_checkpoint(root / "video", None, "none", pixels, "", config)
    model = features.load_video_model(root / "video", torch.float32)
    dense = model.model.get_video_features(
        pixels[None], vision_feature_layer=-1, vision_feature_select_strategy="full"
    ).pooler_output[0]
    torch.testing.assert_close(result.tokens_ND, dense, atol=1e-5, rtol=1e-5)
    assert not result.aligned


@torch.no_grad()
@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_relevance_is_the_towers_own_similarity(
    root: Path, pixels: torch.Tensor, family: str
) -> None:
    query = "where is the red ball"
    result = features.stage1_from_checkpoint(
        root / "video", root / family, "separate", pixels, query, METokConfig()
    )
    towers = features.load_alignment(root / family, torch.float32)
    # The same preprocessing, written for the whole batch and with the literal statistics.
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    if family == "siglip":
        size, own_mean, own_std = 30, torch.full((3,), 0.5), torch.full((3,), 0.5)
    else:
        size = 24
        own_mean, own_std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    column = (1, 3, 1, 1)
    pictures = pixels * std.view(column) + mean.view(column)
    if size != 30:
        pictures = functional.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    pictures = (pictures - own_mean.view(column)) / own_std.view(column)
    tokenizer = features.load_tokenizer(root / family)
    ids = tokenizer([query], padding="max_length", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 8)
    similarity = towers(input_ids=ids, pixel_values=pictures).logits_per_text[0]
    if family == "siglip":
        similarity = similarity - towers.logit_bias
    expected = similarity / towers.logit_scale.exp()
    torch.testing.assert_close(
        torch.tensor(result.relevance_T), expected.detach(), atol=1e-5, rtol=0
    )
    assert result.aligned


@torch.no_grad()
def test_shared_and_separate_agree_when_the_towers_are_the_same(
    root: Path, pixels: torch.Tensor
) -> None:
    towers = features.load_alignment(root / "siglip", torch.float32)
    tower = towers.vision_model
    last = tower(pixels[:1], output_hidden_states=True).hidden_states[-1][0]
    embedding = features.shared_embedding(towers, last)
    expected = towers.get_image_features(pixel_values=pixels[:1]).pooler_output[0]
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "room"), [("siglip", 7), ("clip", 6)])
def test_long_queries_are_split_into_full_windows(root: Path, family: str, room: int) -> None:
    tokenizer = features.load_tokenizer(root / family)
    body = tokenizer(QUERY, add_special_tokens=False)["input_ids"]
    windows = features.query_windows(tokenizer, QUERY, 8)
    inner = [ids[1:] if family == "clip" else ids for ids in windows]
    assert all(len(ids) == 8 for ids in windows)
    assert [token for ids in inner for token in ids[:room]][: len(body)] == body
    assert len(windows) == -(-len(body) // room)
    assert all(tokenizer.eos_token_id in ids for ids in windows)
    assert len(features.query_windows(tokenizer, "", 8)) == 1


@torch.no_grad()
def test_windows_are_joined_by_the_elementwise_maximum(root: Path) -> None:
    towers = features.load_alignment(root / "siglip", torch.float32)
    first, second = " ".join(QUERY.split()[:7]), " ".join(QUERY.split()[7:14])
    joined = features.text_embedding(towers, root / "siglip", first + " " + second)
    parts = [features.text_embedding(towers, root / "siglip", part) for part in (first, second)]
    assert torch.equal(joined, torch.maximum(parts[0], parts[1]))
    assert torch.equal(features.text_embedding(towers, root / "siglip", QUERY, 1), parts[0])
    assert not torch.equal(joined, parts[0])


@pytest.mark.parametrize("mode", ["separate", "shared", "none"])
def test_the_result_is_consistent(root: Path, pixels: torch.Tensor, mode: str) -> None:
    config = METokConfig(num_events=3, key_frames_per_event=1)
    result = features.stage1_from_checkpoint(
        root / "video", root / "siglip", mode, pixels, QUERY, config
    )
    fine, medium, coarse = stage1.budget(9, 3, 0.6, 1)
    assert [result.class_T.count(c) for c in range(3)] == [fine, medium, coarse]
    assert len(result.tokens_ND) == len(result.event_of_token) == fine * 9 + medium * 4 + coarse + 3
    assert len(result.key_events) == 2
    assert result.aligned is (mode != "none")


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    checkpoints.save_siglip(tmp_path)
    towers = features.load_alignment(tmp_path, torch.float32)
    weights = towers.state_dict()
    del weights["vision_model.head.probe"]
    towers.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="probe"):
        features.load_alignment(tmp_path, torch.float64)
