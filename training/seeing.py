"""The first half of training: towers that see and read, and frames as they see them.

Shape suffixes: N frames, H height, W width, C colours, P patches, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    """Alignment towers, whose lower image layers are the video model's tower too."""
    sizes = run.sizes
    towers, reader = new_towers(sizes, run.seed), PatchReader(sizes.width)
    modules: dict[str, nn.Module] = {"towers": towers, "reader": reader}
    phase = Phase("towers", run.steps.towers, 1.5e-3, stream=6)

    def prepare() -> LossOf:
        pixels, truth = draw_bank(
            "train", run.amounts.tower_events, TOWER_MOMENTS, sizes.image, sizes.grid, run.seed
        )

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            index = torch.from_numpy(rng.integers(0, len(pixels), TOWER_FRAMES))
            siglip, patches = tower_loss(
                towers, reader, run.words, pixels[index], truth[index], sizes, rng
            )
            told = {"siglip": float(siglip.detach()), "patches": float(patches.detach())}
            return siglip + patches, told

        return loss_of

    run.phase(phase, modules, prepare)
    shapes = Phase("shapes", run.steps.shapes, 1e-3, stream=5)
    _train_on_shapes(run, shapes, towers, reader, run.seed + 1)
    # More of the same on other frames: held-out shapes are seen less well than known ones.
    sharp = Phase("sharp", run.steps.sharp, 6e-4, stream=10, floor=0.02)
    _train_on_shapes(run, sharp, towers, reader, run.seed + 2)
    return towers


def _train_on_shapes(
    run: Run, phase: Phase, towers: Any, reader: PatchReader, bank_seed: int
) -> None:
    """Half of the frames in other colours, so that a shape is known in any."""
    sizes = run.sizes
    modules: dict[str, nn.Module] = {"towers": towers, "reader": reader}

    def prepare() -> LossOf:
        pixels, truth = draw_bank(
            "train",
            run.amounts.tower_events,
            TOWER_MOMENTS,
            sizes.image,
            sizes.grid,
            bank_seed,
        )

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            index = torch.from_numpy(rng.integers(0, len(pixels), TOWER_FRAMES))
            plain, other = index.chunk(2)
            siglip, patches = tower_loss(
                towers, reader, run.words, pixels[plain], truth[plain], sizes, rng
            )
            changed = to_pixels(recoloured(pixels[other], rng))
            seen = video_features(towers, changed, sizes.video_tower_layers)
            shapes = reader.shape_loss(seen, truth[other])
            parts = {"siglip": siglip, "patches": patches, "shapes": shapes}
            told = {name: float(part.detach()) for name, part in parts.items()}
            return siglip + patches + 4 * shapes, told

        return loss_of

    run.phase(phase, modules, prepare)


def see_bank(run: Run, towers: Any, split: Split, seed: int) -> tuple[Tensor, Truth]:
    """A bank of frames as the vision tower sees them: features float16 [N, P, D], and the truth."""
    sizes = run.sizes
    pixels, truth = draw_bank(
        split, run.amounts.bank_events, BANK_MOMENTS, sizes.image, sizes.grid, seed
    )
    return see(run, towers, pixels), truth


def see(run: Run, towers: Any, pixels_NHWC: Tensor) -> Tensor:
    """The video model's features of frames, float16 [N, P, D]."""
    with torch.inference_mode():
        seen = [
            video_features(towers, to_pixels(chunk), run.sizes.video_tower_layers).half()
            for chunk in pixels_NHWC.split(128)
        ]
    return torch.cat(seen).clone()
