"""The first half of training: the towers, and the vision features of frames.

Shape suffixes: N frames, H height, W width, C colours, P patches, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metok_vllm.benchmarks.eventqa.world import Split
from training.bank import Truth, draw_bank, to_pixels
from training.run import LossOf, Phase, Run
from training.towers import (
    PatchReader,
    new_towers,
    recoloured,
    tower_loss,
    video_features,
)

TOWER_MOMENTS, TOWER_FRAMES = 2, 128
BANK_MOMENTS = 4


def train_towers(run: Run) -> Any:
    """Train the alignment towers; their lower image layers are also the video model's tower."""
    towers, reader = new_towers(run.sizes, run.seed), PatchReader(run.sizes.width)
    phase = Phase("towers", run.steps.towers, 1.5e-3, stream=6)
    _train(run, phase, towers, reader, run.seed, recolour=False)
    shapes = Phase("shapes", run.steps.shapes, 1e-3, stream=5)
    _train(run, shapes, towers, reader, run.seed + 1, recolour=True)
    # Repeated on new frames, because held-out shapes are recognised less well.
    sharp = Phase("sharp", run.steps.sharp, 6e-4, stream=10, floor=0.02)
    _train(run, sharp, towers, reader, run.seed + 2, recolour=True)
    return towers


def _train(
    run: Run, phase: Phase, towers: Any, reader: PatchReader, bank_seed: int, recolour: bool
) -> None:
    """One phase. With `recolour`, half of the frames have other colours and teach shapes alone."""
    sizes = run.sizes

    def prepare() -> LossOf:
        pixels, truth = draw_bank(
            "train", run.amounts.tower_events, TOWER_MOMENTS, sizes.image, sizes.grid, bank_seed
        )

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            index = torch.from_numpy(rng.integers(0, len(pixels), TOWER_FRAMES))
            plain, other = index.chunk(2) if recolour else (index, None)
            siglip, patches = tower_loss(
                towers, reader, run.words, pixels[plain], truth[plain], sizes, rng
            )
            parts, loss = {"siglip": siglip, "patches": patches}, siglip + patches
            if other is not None:
                changed = to_pixels(recoloured(pixels[other], rng))
                features = video_features(towers, changed, sizes.video_tower_layers)
                parts["shapes"] = reader.shape_loss(features, truth[other])
                loss = loss + 4 * parts["shapes"]
            return loss, {name: float(part.detach()) for name, part in parts.items()}

        return loss_of

    run.phase(phase, {"towers": towers, "reader": reader}, prepare)


def encode_bank(run: Run, towers: Any, split: Split, seed: int) -> tuple[Tensor, Truth]:
    """The vision features float16 [N, P, D] of a bank of frames, and its truth."""
    sizes = run.sizes
    pixels, truth = draw_bank(
        split, run.amounts.bank_events, BANK_MOMENTS, sizes.image, sizes.grid, seed
    )
    return encode_frames(run, towers, pixels), truth


def encode_frames(run: Run, towers: Any, pixels_NHWC: Tensor) -> Tensor:
    """The video model's features of frames, float16 [N, P, D]."""
    with torch.inference_mode():
        features = [
            video_features(towers, to_pixels(chunk), run.sizes.video_tower_layers).half()
            for chunk in pixels_NHWC.split(128)
        ]
    return torch.cat(features).clone()
