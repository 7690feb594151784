"""The committed demo is complete, small, in the published layout, and what the scripts write."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import load_file

from metok_vllm.benchmarks.eventqa.world import split_of
from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR, SAMPLE_VIDEO
from training import sample
from training.checkpoint import write_checkpoint
from training.sizes import Sizes

DEMO = SAMPLE_VIDEO.parent
LEFT_TO_HUMANS = {Path("README.md")}  # the model card


def test_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file()) < 8_000_000
    assert SAMPLE_VIDEO.stat().st_size <= 400_000


def test_everything_but_the_weights_is_written_again_alike(tmp_path: Path) -> None:
    video = load_file(MODEL_DIR / "model.safetensors")
    alignment = load_file(ALIGNMENT_DIR / "model.safetensors")
    write_checkpoint(tmp_path, Sizes(), video, alignment)
    names = {path.relative_to(MODEL_DIR) for path in MODEL_DIR.rglob("*") if path.is_file()}
    names -= LEFT_TO_HUMANS
    assert names == {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    for name in names:
        fresh, committed = tmp_path / name, MODEL_DIR / name
        if name.suffix == ".json":
            assert json.loads(fresh.read_text()) == json.loads(committed.read_text()), name
        else:
            assert fresh.read_bytes() == committed.read_bytes(), name


def test_regenerating_gives_the_committed_video(tmp_path: Path) -> None:
    sample.write(tmp_path)
    assert (tmp_path / "scenes.json").read_text() == (DEMO / "scenes.json").read_text()
    with av.open(str(tmp_path / "sample.mp4")) as new, av.open(str(SAMPLE_VIDEO)) as old:
        pairs = list(zip(new.decode(video=0), old.decode(video=0), strict=True))
    for fresh, committed in pairs[::40]:
        a, b = (f.to_ndarray(format="gray").astype(np.int16) for f in (fresh, committed))
        assert np.abs(a - b).mean() < 2


def test_the_sample_shows_what_the_model_was_not_trained_on() -> None:
    for _, scene in sample.SCENES:
        assert split_of(scene.background, scene.colour, scene.shape) == "test", scene


def test_tensor_names_are_those_of_published_checkpoints() -> None:
    tensors = load_file(MODEL_DIR / "model.safetensors")
    prefixes = {".".join(name.split(".")[:2]) for name in tensors}
    assert prefixes == {
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "image_newline",
        "language_model.model",
        "language_model.lm_head",
    }


def test_alignment_image_tower_is_the_video_models_tower() -> None:
    tower = {
        name.removeprefix("vision_tower."): tensor
        for name, tensor in load_file(MODEL_DIR / "model.safetensors").items()
        if name.startswith("vision_tower.")
    }
    alignment = load_file(ALIGNMENT_DIR / "model.safetensors")
    assert all(torch.equal(tensor, alignment[name]) for name, tensor in tower.items())
    beside = {name for name in alignment if name.startswith("vision_model.")} - tower.keys()
    # SigLIP's last layer and its head are the alignment model's alone.
    last = f"vision_model.encoder.layers.{Sizes().video_tower_layers}."
    assert {name for name in beside if name.startswith(last)}
    assert all(name.startswith(("vision_model.head.", last)) for name in beside)
