"""The staged checkpoint: complete, deterministic, of the sizes it is given."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.reference.staged_checkpoint import Sizes, load_model, write_checkpoint

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
