"""Pixels in the order of Qwen's video processors, as pictures of any size and back.

A row of pixels is one patch of a temporal patch. Patches stand merge cell by merge cell, and a
patch holds channel, sampled frame, rows and columns, in this order.
Source of the order: transformers, Qwen2VLVideoProcessor.patchify.

Shape suffixes: T temporal patches, N patches of one, V values of a patch, S sampled frames of a
temporal patch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from metok_vllm.alignment import Normalisation, value_range

Grid = tuple[int, int]


@dataclass(frozen=True)
class PatchOrder:
    """`patch` pixels and `merge` patches a side, `sampled` frames in a temporal patch."""

    patch: int
    merge: int
    sampled: int

    @classmethod
    def of(cls, vision: Any) -> PatchOrder:
        """From the vision part of a Hugging Face configuration."""
        return cls(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)

    def pictures(self, pixels_TNV: Tensor, grid: Grid) -> Tensor:
        """Sampled frames [T, S, C, H, W] of patches; `grid` has rows and columns of merge cells."""
        rows, columns = grid
        merge, patch = self.merge, self.patch
        cells = pixels_TNV.view(
            len(pixels_TNV), rows, columns, merge, merge, -1, self.sampled, patch, patch
        )
        # [T, S, C, rows, merge rows, patch rows, columns, merge columns, patch columns]
        picture: Tensor = cells.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).flatten(6, 8).flatten(3, 5)
        return picture

    def patches(self, picture_TSCHW: Tensor) -> Tensor:
        """The reverse of `pictures`: patches [T, N, V]."""
        merge, patch = self.merge, self.patch
        cells = picture_TSCHW.unflatten(4, (-1, merge, patch)).unflatten(3, (-1, merge, patch))
        # [T, rows, columns, merge rows, merge columns, C, S, patch rows, patch columns]
        patches: Tensor = cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5, 8).flatten(1, 4)
        return patches

    def resized(
        self, pixels_TNV: Tensor, grid: Grid, target: Grid, normalisation: Normalisation
    ) -> Tensor:
        """Patches [T, N', V] of the same frames in a `target` grid of merge cells.

        Bicubic with antialiasing, as the published processors resize; values stay in the range of
        pixels, and bytes stay whole. `normalisation` is that of the pixels.
        """
        picture_TSCHW = self.pictures(pixels_TNV, grid)
        height, width = (side * self.merge * self.patch for side in target)
        x = picture_TSCHW.flatten(0, 1).float()
        x = F.interpolate(x, size=(height, width), mode="bicubic", antialias=True)
        least, most = value_range(normalisation, x)
        x = x.maximum(least).minimum(most)
        if not pixels_TNV.is_floating_point():
            x = x.round()
        return self.patches(x.unflatten(0, (-1, self.sampled)).to(pixels_TNV.dtype))
