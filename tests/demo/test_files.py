"""The committed demo is complete, small, in the published layout, and what the scripts write."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from metok_vllm.demo import ALIGNMENT_DIR, MODEL_DIR, SAMPLE_VIDEO

ROOT = Path(__file__).resolve().parents[2]
DEMO = SAMPLE_VIDEO.parent


def _run(module: str, out: Path) -> None:
    command = [sys.executable, "-m", f"scripts.{module}", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def fresh_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    _run("make_demo_model", out)
    return out


def test_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 8_000_000
    assert SAMPLE_VIDEO.stat().st_size <= 400_000


def test_regenerating_gives_the_committed_files(fresh_model: Path) -> None:
    names = {path.relative_to(MODEL_DIR) for path in MODEL_DIR.rglob("*") if path.is_file()}
    assert names == {p.relative_to(fresh_model) for p in fresh_model.rglob("*") if p.is_file()}
    for name in names:
        fresh, committed = fresh_model / name, MODEL_DIR / name
        if name.suffix == ".json":
            assert json.loads(fresh.read_text()) == json.loads(committed.read_text()), name
        elif name.suffix == ".jinja":
            assert fresh.read_text() == committed.read_text()
        else:
            new, old = load_file(fresh), load_file(committed)
            assert new.keys() == old.keys()
            assert all(torch.equal(new[key], old[key]) for key in new), name


def test_regenerating_gives_the_committed_video(tmp_path: Path) -> None:
    _run("make_sample_video", tmp_path)
    assert (tmp_path / "scenes.json").read_text() == (DEMO / "scenes.json").read_text()
    with av.open(str(tmp_path / "sample.mp4")) as new, av.open(str(SAMPLE_VIDEO)) as old:
        pairs = list(zip(new.decode(video=0), old.decode(video=0), strict=True))
    for fresh, committed in pairs[::40]:
        a, b = (f.to_ndarray(format="gray").astype(np.int16) for f in (fresh, committed))
        assert np.abs(a - b).mean() < 2


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
    assert beside
    assert all(name.startswith("vision_model.head.") for name in beside)
