"""Temporary checkpoints load in Hugging Face, and vLLM's command line accepts their flags."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipModel,
)

from metok_vllm.alignment.towers import AlignmentTowers
from metok_vllm.benchmarks.throughput import checkpoints, weights
from metok_vllm.benchmarks.throughput.checkpoints import ALL_SIZES
from metok_vllm.benchmarks.throughput.servers import TRUST_REQUESTS, WITHOUT_LIMITS
from metok_vllm.benchmarks.throughput.sizes import SIZES, Sizes, Tower
from metok_vllm.demo import MODEL_DIR
from metok_vllm.server.commands import serve_args

TINY = replace(
    SIZES["cpu-reference"],
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    intermediate=96,
    vocabulary=2048,
    alignment=Tower(1, 32, 2, 48, image=28, patch=14),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    checkpoints.write_model(tmp_path / "model", TINY)
    return tmp_path / "model"


def load(folder: Path) -> Any:
    found, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    return found


def on_meta(sizes: Sizes, folder: Path) -> Any:
    checkpoints.write_model(folder, replace(sizes, real_weights=False))
    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_pretrained(folder))


def test_every_weight_is_there_and_no_other(model: Path) -> None:
    found = load(model)
    text, vision = found.config.text_config, found.config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size) == (2, 64, 96)
    assert (text.num_attention_heads, text.num_key_value_heads, text.vocab_size) == (4, 2, 2048)
    assert (vision.num_hidden_layers, vision.hidden_size, vision.image_size) == (3, 128, 112)
    assert found.lm_head.weight is found.model.language_model.embed_tokens.weight
    weight = found.model.language_model.layers[1].mlp.up_proj.weight.float()
    assert weight.std().item() == pytest.approx(weights.STD, rel=0.05)
    demo = load_file(MODEL_DIR / "model.safetensors")
    name = "encoder.layers.2.mlp.fc1.weight"
    ours = dict(found.model.vision_tower.named_parameters())
    (tower,) = [value for key, value in ours.items() if key.endswith(name)]
    assert torch.equal(tower, demo[f"vision_tower.vision_model.{name}"])


def test_the_same_weights_each_time_in_files_of_any_size(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 50_000)
    checkpoints.write_model(tmp_path / "again", TINY)
    files = sorted((tmp_path / "again").glob("*.safetensors"))
    assert len(files) > 3
    again = load(tmp_path / "again").state_dict()
    for name, tensor in load(model).state_dict().items():
        assert torch.equal(tensor, again[name]), name
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "again" / file)


def test_the_tokenizer_is_the_demos_with_padding(model: Path) -> None:
    ours, demo = (AutoTokenizer.from_pretrained(folder) for folder in (model, MODEL_DIR))
    text = "<|im_start|>user <video>\nWhere is #1024, and what comes after it?<|im_end|>"
    assert ours(text).input_ids == demo(text).input_ids
    assert len(ours) == TINY.vocabulary
    for number in range(len(demo), TINY.vocabulary):
        assert ours.decode([number]).strip() == f"#{number}"
    assert AutoProcessor.from_pretrained(model).num_image_tokens == 14 * 14


def test_alignment_towers_load(tmp_path: Path) -> None:
    assert TINY.alignment is not None
    checkpoints.write_alignment(tmp_path / "alignment", TINY.alignment)
    _, info = SiglipModel.from_pretrained(tmp_path / "alignment", output_loading_info=True)
    assert not any(info.values()), info
    towers = AlignmentTowers.load(str(tmp_path / "alignment"))
    frames_TCHW = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    assert towers.embed_frames(frames_TCHW).shape == (3, 32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "alignment")
    ids_WL = tokenizer("where", padding="max_length", max_length=64, return_tensors="pt").input_ids
    assert towers.embed_text(ids_WL).shape == (32,)


@pytest.mark.parametrize(
    ("name", "decoder_millions", "tower_millions"),
    # The decoders: Qwen2's own model cards (0.49 and 7.61 billion, with what LLaVA-OneVision adds
    # to the vocabulary). The towers: SigLIP so400m less a layer and its head, CLIP ViT-L less one.
    [
        ("cpu-reference", (490, 500), (0, 1)),
        ("llava-onevision-7b", (7600, 7630), (390, 420)),
        ("longva-7b", (7600, 7630), (280, 300)),
    ],
)
def test_as_large_as_the_real_model(
    name: str,
    decoder_millions: tuple[int, int],
    tower_millions: tuple[int, int],
    tmp_path: Path,
) -> None:
    model = on_meta(SIZES[name], tmp_path / "model")
    parts = {
        "decoder": {*model.model.language_model.parameters(), *model.lm_head.parameters()},
        "tower": {*model.model.vision_tower.parameters()},
    }
    for part, (least, most) in zip(parts, (decoder_millions, tower_millions), strict=True):
        assert least <= sum(tensor.numel() for tensor in parts[part]) / 1e6 <= most, part
    assert not list((tmp_path / "model").glob("*.safetensors"))


@pytest.fixture
def environment() -> Iterator[None]:
    before = dict(os.environ)  # serve_args writes to it
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", ALL_SIZES)
def test_the_servers_take_the_flags(name: str) -> None:
    flags = (*ALL_SIZES[name].flags, "--served-model-name", name, *TRUST_REQUESTS)
    args = serve_args.parse(["m", *flags, *WITHOUT_LIMITS, "--metok-alignment-model", "a"])
    assert args.served_model_name == [name]
    assert args.trust_request_mm_kwargs
    assert args.limit_mm_per_prompt == {"video": 1, "image": 1}
    assert args.additional_config["metok"]["alignment_model"] == "a"
    assert args.max_num_batched_tokens <= args.max_model_len <= ALL_SIZES[name].positions
    assert os.environ["METOK_SERVER_MAX_INFLIGHT"] == os.environ["METOK_SERVER_REQUEST_TIMEOUT_S"]
