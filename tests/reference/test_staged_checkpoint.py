"""The staged checkpoint: complete, deterministic, and the same model in vLLM and Hugging Face."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoProcessor

from tests.reference.decoder import generate
from tests.reference.staged_checkpoint import (
    Sizes,
    embed_prompt,
    language_model,
    load_model,
    write_checkpoint,
)

BOUNDARIES, NEW_TOKENS = (2, 4, 6), 12
QUESTION = "<|im_start|>user {}\nwhere does the red ball go?<|im_end|><|im_start|>assistant\n"
SMALL = Sizes(layers=5, hidden=64, heads=8, kv_heads=1, intermediate=96, image=36, patch=6)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_checkpoint(tmp_path / name, SMALL, seed)
    same, other = digests(tmp_path / "b"), digests(tmp_path / "c")
    assert digests(tmp_path / "a") == same
    assert {name for name in same if same[name] != other[name]} == {"model.safetensors"}


def test_sizes_reach_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL)
    model = load_model(tmp_path)
    decoder = model.model.language_model
    assert len(decoder.layers) == 5
    attention, mlp = decoder.layers[0].self_attn, decoder.layers[0].mlp
    assert attention.q_proj.weight.shape == (64, 64)
    assert attention.k_proj.weight.shape == (8, 64)
    assert mlp.up_proj.weight.shape == (96, 64)
    features = model.model.get_video_features(
        torch.rand(1, 2, 3, 36, 36), vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    # 6 x 6 patches at stride 2, two frames, one newline.
    assert features.pooler_output[0].shape == (2 * 9 + 1, 64)


def test_weights_have_published_names_and_the_calm_spread(staged_checkpoint: Path) -> None:
    with safe_open(staged_checkpoint / "model.safetensors", "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    tops = {name.split(".")[0] for name in state}
    assert tops == {"image_newline", "language_model", "multi_modal_projector", "vision_tower"}
    assert "vision_tower.vision_model.embeddings.patch_embedding.weight" in state
    assert "language_model.lm_head.weight" in state
    layer = "language_model.model.layers.7."
    for name, std in (("q_proj", 0.2), ("k_proj", 0.2), ("v_proj", 0.08), ("o_proj", 0.08)):
        weight = state[f"{layer}self_attn.{name}.weight"]
        assert float(weight.std()) == pytest.approx(std, rel=0.03)
    assert torch.equal(state[f"{layer}input_layernorm.weight"], torch.ones(128))


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_checkpoint(tmp_path, SMALL)
    state = load_file(tmp_path / "model.safetensors")
    del state["image_newline"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="image_newline"):
        load_model(tmp_path)


@pytest.fixture(scope="module")
def engine(staged_checkpoint: Path) -> Iterator[Any]:
    """Plain vLLM on the checkpoint, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM

        engine = LLM(
            str(staged_checkpoint),
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_logprobs=-1,
        )
        yield engine
        engine.llm_engine.engine_core.shutdown()
        gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("with_video", [False, True])
def test_vllm_answers_as_the_reference_without_stages(
    engine: Any, staged_checkpoint: Path, staged_model: Any, with_video: bool
) -> None:
    from vllm import SamplingParams

    model = language_model(staged_model)
    prompt: dict[str, Any] = {"prompt": QUESTION.format("<video>" if with_video else "")}
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
    if with_video:
        prompt["multi_modal_data"] = {"video": [frames]}
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, logprobs=-1, ignore_eos=True)
    (output,) = engine.generate([prompt], params, use_tqdm=False)
    ids = output.prompt_token_ids

    visual: dict[int, Tensor] = {}
    if with_video:
        tokens_MD = video_features(staged_model, staged_checkpoint, frames)
        token = staged_model.config.video_token_id
        # 8 x 8 patches at stride 2, six frames, one newline.
        assert ids.count(token) == len(tokens_MD) == 6 * 16 + 1
        visual[ids.index(token)] = tokens_MD
    result = generate(
        model, embed_prompt(model, ids, visual), [], BOUNDARIES, NEW_TOKENS, stages=()
    )
    assert list(output.outputs[0].token_ids) == result.tokens
    for row_V, step in zip(result.logprobs_SV, output.outputs[0].logprobs, strict=True):
        assert len(step) == len(row_V)
        told_V = torch.tensor([step[token].logprob for token in range(len(row_V))])
        torch.testing.assert_close(told_V, row_V, atol=2e-4, rtol=0)


@torch.no_grad()
def video_features(model: Any, folder: Path, frames: np.ndarray) -> Tensor:
    """The model's own visual tokens [M, D] of one video, newline included."""
    processor = AutoProcessor.from_pretrained(folder).video_processor
    pixels = processor(frames, return_tensors="pt")["pixel_values_videos"]
    features: Tensor = model.model.get_video_features(
        pixels, vision_feature_layer=-1, vision_feature_select_strategy="full"
    ).pooler_output[0]
    return features
