"""Pairs of frames of one size: of one event, with a cut between, and from a soft cut.

Shape suffixes: N pairs, H height, W width, C colours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.qwen3_vl.sizes import PATCH, UNIT
from training.qwen3_vl.tower import Grid

MOMENTS = 4  # frames of an event
DRAWN = 5 * UNIT  # pixels along a side before scaling
MAIN: Grid = (8, 8)
GRIDS: tuple[Grid, ...] = (MAIN, (4, 4), (6, 6), (10, 10), (6, 10), (10, 6))
FADE = 0.25  # step of a soft cut


def scaled(pixels_NHWC: Tensor, grid: Grid) -> Tensor:
    """Frames uint8 at the size of a grid, as the processor scales them."""
    size = (grid[0] * PATCH, grid[1] * PATCH)
    if pixels_NHWC.shape[1:3] == size:
        return pixels_NHWC
    frames_NCHW = pixels_NHWC.permute(0, 3, 1, 2)
    smaller = F.interpolate(frames_NCHW, size, mode="bicubic", antialias=True)
    return smaller.permute(0, 2, 3, 1)


def choose_pairs(events: int, pairs: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Numbers [N, 2] of two frames, and the second's share [N, 2] in each frame of the pair.

    Half of the pairs are of one event; a third of the others are from a soft cut.
    """
    # Both events have named colours, or both have not.
    half = np.where(rng.random(pairs) < 0.5, 0, events // 2)
    first, second = (half + rng.integers(0, events // 2, pairs) for _ in range(2))
    same = rng.random(pairs) < 0.5
    second = np.where(same, first, second)
    moment = 2 * rng.integers(0, MOMENTS // 2, pairs)
    index = np.stack([first * MOMENTS + moment, second * MOMENTS + moment + 1], 1)
    start = FADE * rng.integers(0, round(1 / FADE), pairs)
    soft = ~same & (rng.random(pairs) < 1 / 3)
    share = np.where(soft[:, None], np.stack([start, start + FADE], 1), [[0.0, 1.0]])
    return torch.from_numpy(index), torch.from_numpy(share.astype(np.float32))


def mixed_pairs(pixels_NHWC: Tensor, share_N2: Tensor) -> Tensor:
    """Pairs of frames [N, 2, H, W, C] in which the second picture has these shares."""
    pair = pixels_NHWC.view(len(share_N2), 2, *pixels_NHWC.shape[1:])
    soft = (share_N2 != torch.tensor([0.0, 1.0])).any(1)
    if bool(soft.any()):
        one, other = pair[soft, :1].float(), pair[soft, 1:].float()
        blend = torch.lerp(one, other, share_N2[soft][..., None, None, None])
        pair = pair.clone()
        pair[soft] = blend.add(0.5).to(torch.uint8)
    return pair


def hard_cuts(index_N2: Tensor, share_N2: Tensor) -> Tensor:
    """Which pairs [N] have a hard cut between two events."""
    hard = (share_N2 == torch.tensor([0.0, 1.0])).all(1)
    return hard & (index_N2[:, 0] // MOMENTS != index_N2[:, 1] // MOMENTS)
