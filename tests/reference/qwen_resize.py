"""`reduce: resize` on a Qwen tower as plain loops: one frame at a time, Hugging Face's tower.

Nothing of the package. A frame is a temporal patch of two sampled pictures.

Shapes: N patches of a frame, V values of a patch, S sampled pictures, P features, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.reference import stage1

SAMPLED, MERGE = 2, 2

Grid = tuple[int, int]


@dataclass(frozen=True)
class Pixels:
    """Pictures of `patch` pixels a patch, normalised by a processor's `mean` and `std`."""

    patch: int
    mean: Sequence[float]
    std: Sequence[float]

    def picture(self, patches_NV: Tensor, grid: Grid) -> Tensor:
        """Two pictures [S, 3, H, W] of a grid of merge cells, patch by patch."""
        rows, columns = (side * MERGE * self.patch for side in grid)
        picture = torch.full((SAMPLED, 3, rows, columns), torch.nan)
        for number, (top, left) in enumerate(self._corners(grid)):
            values = patches_NV[number].reshape(3, SAMPLED, self.patch, self.patch)
            for sampled in range(SAMPLED):
                picture[sampled, :, top : top + self.patch, left : left + self.patch] = values[
                    :, sampled
                ]
        return picture

    def patches(self, picture: Tensor, grid: Grid) -> Tensor:
        """The patches [N, V] of two pictures."""
        found = []
        for top, left in self._corners(grid):
            cut = picture[:, :, top : top + self.patch, left : left + self.patch]
            found.append(torch.stack([cut[:, channel] for channel in range(3)]).flatten())
        return torch.stack(found)

    def _corners(self, grid: Grid) -> list[tuple[int, int]]:
        """Top and left pixel of every patch, merge cell by merge cell."""
        return [
            ((row * MERGE + y) * self.patch, (column * MERGE + x) * self.patch)
            for row in range(grid[0])
            for column in range(grid[1])
            for y in range(MERGE)
            for x in range(MERGE)
        ]

    def colours(self, picture: Tensor) -> Tensor:
        """A picture's values from 0 to 1."""
        channels = zip(picture.unbind(-3), self.mean, self.std, strict=True)
        return torch.stack([values * std + mean for values, mean, std in channels], dim=-3)

    def normalised(self, colours: Tensor) -> Tensor:
        """The reverse of `colours`."""
        channels = zip(colours.unbind(-3), self.mean, self.std, strict=True)
        return torch.stack([(values - mean) / std for values, mean, std in channels], dim=-3)

    def resized(self, patches_NV: Tensor, grid: Grid, target: Grid) -> Tensor:
        """The same frame's patches at the size of another grid."""
        size = tuple(side * MERGE * self.patch for side in target)
        colours = self.colours(self.picture(patches_NV, grid))
        small = [
            functional.interpolate(one[None], size=size, mode="bicubic", antialias=True)[0]
            for one in colours
        ]
        return self.patches(self.normalised(torch.stack(small).clamp(0, 1)), target)


def thumbnails(frames: Sequence[Tensor], grid: Grid, pixels: Pixels) -> list[list[float]]:
    """Each frame's first picture as 8 x 8 colours, less the mean of the video's."""
    small = []
    for patches_NV in frames:
        colours = pixels.colours(pixels.picture(patches_NV, grid)[:1])
        small.append(
            functional.interpolate(colours, size=(8, 8), mode="bilinear", antialias=True).flatten()
        )
    mean = stage1.mean_vector([values.double().tolist() for values in small])
    return [
        [round(value - middle, 4) for value, middle in zip(values.tolist(), mean, strict=True)]
        for values in small
    ]


def tower(visual: Any, patches_NV: Tensor, grid: Grid) -> Tensor:
    """One frame's features [P, D]; those of further depths stand behind the last one's."""
    seen = visual(patches_NV, grid_thw=torch.tensor([[1, *(side * MERGE for side in grid)]]))
    return torch.cat([seen.pooler_output, *(getattr(seen, "deepstack_features", None) or [])], -1)


@dataclass(frozen=True)
class Encoded:
    """What the decoder is given for a video, and how its frames were divided."""

    packed: stage1.Packed
    event_of: list[int]
    classes: list[int]


@torch.no_grad()
def encode(
    see: Callable[[Tensor, Grid], Tensor],
    frames: Sequence[Tensor],
    grid: Grid,
    pixels: Pixels,
    rule: Any,
    before: Sequence[Tensor] = (),
    after: Sequence[Tensor] = (),
) -> Encoded:
    """Stage 1 by `rule` (METok's settings) without alignment towers.

    `see` gives the features of one frame's patches in a grid. `before` and `after` are the rows of
    the text around each frame.
    """
    looks = thumbnails(frames, grid, pixels)
    event_of = stage1.event_of_frames(stage1.adjacent_cosines(looks), rule.num_events)
    relevance = stage1.fallback_relevance(looks, event_of)
    settings = rule.key_event_ratio, rule.key_frames_per_event
    natural = stage1.natural_classes(event_of, relevance, *settings)
    fine, medium, _ = stage1.budget(len(frames), rule.num_events, *settings)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium)
    encoded = []
    for patches_NV, number in zip(frames, classes, strict=True):
        target = stage1.pooled_sides(grid, rule.strides[number] // MERGE, "area")
        encoded.append(see(pixels.resized(patches_NV, grid, target), target))
    strides = [stride // MERGE for stride in rule.strides]
    packed = stage1.pack(
        encoded,
        classes,
        event_of,
        encoded[0][0],
        grid,
        strides,
        "area",
        stage1.NOWHERE,
        before=before,
        after=after,
        reduce="resize",
    )
    return Encoded(packed, event_of, classes)
