"""Training of the tower on pairs of frames.

First its tokens shall equal the demo's: the mean of both frames'. So that both frames of a cut can
be told apart, its patches are also classified for each frame. Half of the events have other
colours, as in the demo's phase `shapes`: the training split alone would teach shapes by their
colours. Then a pair with a cut learns to look like its second frame.

Shape suffixes: E events, N pairs, H height, W width, C colours, P patches, K tokens, D features.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.bank import Truth, draw_bank
from training.qwen3_vl.pairs import (
    DRAWN,
    GRIDS,
    MAIN,
    MOMENTS,
    choose_pairs,
    hard_cuts,
    mixed_pairs,
    scaled,
)
from training.qwen3_vl.sizes import BASE
from training.qwen3_vl.tower import Grid, Tower, merge_order, to_patches
from training.qwen3_vl.warm_start import demo_features, demo_tokens
from training.run import LossOf, Phase, Run
from training.towers import PatchReader, recoloured

MAIN_SHARE = 0.6  # of the batches
PATCHES = 6144  # of a batch
MOST_PAIRS = 192
SECOND_FIRST = (0.2, 0.8)  # weights of a pair's frames before `train_cuts`


@dataclass(frozen=True)
class Frames:
    """E events with MOMENTS frames each, uint8 [E * MOMENTS, DRAWN, DRAWN, 3], and the demo's
    patches of them, float16. The first half has the named colours, the second half others."""

    pixels: Tensor
    patches: Tensor
    truth: Truth

    @property
    def events(self) -> int:
        """The number of events."""
        return len(self.pixels) // MOMENTS


def draw_frames(run: Run, demo: Any, seed: int) -> Frames:
    """The frames of `run.amounts.tower_events` events."""
    pixels, truth = draw_bank(
        "train", run.amounts.tower_events, MOMENTS, DRAWN, BASE.grid, seed, steady=True
    )
    half = run.amounts.tower_events // 2 * MOMENTS
    rng = np.random.default_rng([seed, 20])
    # Frames of an event, one below the other, have one recolouring.
    tall = pixels[half:].view(-1, MOMENTS * DRAWN, DRAWN, 3)
    for few in tall.split(64):
        few.copy_(recoloured(few, rng))
    return Frames(pixels, demo_features(demo, pixels).half(), truth)


def train_tower(run: Run, tower: Tower, demo: Any) -> None:
    """Train the tower and its merger to give the demo's tokens."""
    readers = {name: PatchReader(BASE.width) for name in ("first", "second")}

    def prepare() -> LossOf:
        frames = draw_frames(run, demo, run.seed + 50)
        scale = float(demo_tokens(frames.patches[:512].float(), MAIN).var())
        truths = _in_merge_order(frames.truth)

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            grid, number = _size(rng)
            index_N2, share_N2 = choose_pairs(frames.events, number, rng)
            mixed = mixed_pairs(scaled(frames.pixels[index_N2.flatten()], grid), share_N2)
            with torch.autocast("cpu", torch.bfloat16):
                patches_NPX = to_patches(mixed)[0]
                features_NPD = tower.features(patches_NPX, grid)
                tokens_NKD = tower.tokens(features_NPD).float()
            target = demo_tokens(frames.patches[index_N2.flatten()].float(), grid)
            target_N2KD = target.view(*index_N2.shape, *target.shape[1:])
            late_N = share_N2.mean(1)[:, None, None]
            wanted_NKD = torch.lerp(target_N2KD[:, 0], target_N2KD[:, 1], late_N)
            loss = (tokens_NKD - wanted_NKD).square().mean() / scale
            figures = {"tokens": float(loss.detach())}
            if grid == MAIN:
                hard = (share_N2 == torch.tensor([0.0, 1.0])).all(1)
                last = tower.last(features_NPD).float()
                named = index_N2[:, 0] < frames.events // 2 * MOMENTS
                read = torch.zeros(())
                for side, reader in enumerate(readers.values()):
                    plain, other = hard & named, hard & ~named
                    read = read + reader.loss(last[plain], truths[index_N2[plain, side]])
                    read = read + 4 * reader.shape_loss(last[other], truths[index_N2[other, side]])
                figures["patches"] = float(read.detach())
                loss = loss + 0.1 * read
            return loss, figures

        return loss_of

    phase = Phase("qwen3_tower", run.steps.towers, 5e-4, stream=30, floor=0.02)
    run.phase(phase, {"tower": tower, **readers}, prepare)


def train_cuts(run: Run, tower: Tower) -> None:
    """Train the layers so that a pair with a hard cut looks like two of its second frame.

    The mean of two pictures does not say what belongs together. Events have two frames or more, so
    each is still the second frame of some pair. All other pairs keep their features.
    """
    phase = Phase("qwen3_cuts", run.steps.sharp, 5e-4, stream=34, floor=0.02)

    def prepare() -> LossOf:
        old = deepcopy(tower).requires_grad_(False)
        with torch.no_grad():
            kernel_DCTHW = tower.visual.patch_embed.proj.weight
            share = torch.tensor(SECOND_FIRST)[:, None, None]
            kernel_DCTHW.copy_(kernel_DCTHW.sum(2, keepdim=True) * share)
        pixels, _ = draw_bank(
            "train", run.amounts.bank_events, MOMENTS, DRAWN, BASE.grid, run.seed + 51, steady=True
        )
        scales: dict[Grid, Tensor] = {}

        def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
            grid, number = _size(rng)
            index_N2, share_N2 = choose_pairs(len(pixels) // MOMENTS, number, rng)
            mixed = mixed_pairs(scaled(pixels[index_N2.flatten()], grid), share_N2)
            cut = hard_cuts(index_N2, share_N2)
            shown = mixed.clone()
            shown[cut, 0] = mixed[cut, 1]
            with torch.autocast("cpu", torch.bfloat16):
                found_NPD = tower.features(*to_patches(mixed)).float()
                with torch.no_grad():
                    wanted_NPD = old.features(*to_patches(shown)).float()
            if grid not in scales:
                scales[grid] = wanted_NPD.var((0, 1))
            error_N = ((found_NPD - wanted_NPD).square() / scales[grid]).mean((1, 2))
            figures = {
                "cut": float(error_N[cut].detach().mean()),
                "other": float(error_N[~cut].detach().mean()),
            }
            return error_N.mean(), figures

        return loss_of

    tower.requires_grad_(True)
    tower.mergers().requires_grad_(False)
    run.phase(phase, {"tower": tower}, prepare)


def _in_merge_order(truth: Truth) -> Truth:
    order = merge_order(MAIN)
    return replace(
        truth,
        shape_cover_NP=truth.shape_cover_NP[:, order],
        dot_cover_NP=truth.dot_cover_NP[:, order],
    )


def _size(rng: np.random.Generator) -> tuple[Grid, int]:
    """The size of a batch's frames, and the number of its pairs."""
    grid = MAIN if rng.random() < MAIN_SHARE else GRIDS[int(rng.integers(1, len(GRIDS)))]
    return grid, min(PATCHES // (grid[0] * grid[1]), MOST_PAIRS)
