"""Checkpoints whose layers use visual tokens only up to a known layer, and videos for them."""

from __future__ import annotations

import gc
from pathlib import Path

from safetensors.torch import load_file, save_file

from tests.reference.staged_checkpoint import Sizes, write_checkpoint
from tests.video.clips import encode

LAYERS = 8
SIZES = Sizes(layers=LAYERS, hidden=64, heads=4, kv_heads=2, intermediate=96, image=48, patch=8)


def write_deaf(folder: Path, deaf_from: int) -> None:
    """A random model whose attention has no effect from layer `deaf_from` on.

    From that layer on, visual tokens do not affect the answer.
    """
    write_checkpoint(folder, SIZES, seed=2)
    path = folder / "model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    gc.collect()  # unmaps the file before it is overwritten
    silenced = [
        f"language_model.model.layers.{layer}.self_attn.o_proj.weight"
        for layer in range(deaf_from, LAYERS)
    ]
    for name in silenced:
        state[name].zero_()
    save_file(state, path, metadata={"format": "pt"})


def write_videos(folder: Path, count: int = 2) -> Path:
    """A folder of `count` short, different videos and a text file."""
    folder.mkdir()
    for number in range(count):
        data = encode(num_frames=24 + 8 * number, size=(96, 64))
        (folder / f"{number}.mp4").write_bytes(data)
    (folder / "notes.txt").write_text("no video")
    return folder
