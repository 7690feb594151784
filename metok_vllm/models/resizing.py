"""Frames encoded at their own resolution: what tells them apart before the tower, and their rows.

With the reduction `resize` a frame's class is known before the vision tower sees it. The tower then
sees the frames of each class together, at that class's resolution, and no frame twice. Sizes are
known on the host: nothing here waits for the device.

Shape suffixes: T frames, C channels, H height, W width, D features, N tokens, F frames of a class.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metok_vllm.alignment import Normalisation, renormalise

THUMBNAIL = Normalisation((0.0,) * 3, (1.0,) * 3, 8)
DECIMALS = 4


def thumbnails(picture_TCHW: Tensor, pixels: Normalisation) -> Tensor:
    """Each picture as THUMBNAIL.size x THUMBNAIL.size colours from 0 to 1, float32 [T, D]."""
    return renormalise(picture_TCHW.float(), pixels, THUMBNAIL).flatten(1)


def centred(thumbnail_TD: Tensor) -> Tensor:
    """Thumbnails as differences from the video's mean, to DECIMALS decimals.

    Colours are never negative, so whole thumbnails are all alike; the differences are not.
    Rounded, so that frames of a still video are equal, whatever the order of summation.
    """
    return (thumbnail_TD - thumbnail_TD.mean(0)).round(decimals=DECIMALS)


def frames_by_class(class_T: Tensor, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """The frames of each class in time order, int64 [F] each; `counts` has how many there are."""
    frames: tuple[Tensor, ...] = class_T.argsort(stable=True).split(list(counts))
    return frames


def rows_by_class(
    row_N: Tensor, class_T: Tensor, counts: Sequence[int], sizes: Sequence[int], num_rows: int
) -> Tensor:
    """Tokens' rows int64 [N] where each frame is held at its own class's size only.

    `row_N` addresses [all frames at each class's size in turn | others], the result
    [frames of each class in turn | others], `num_rows` rows in all. A class has `counts` frames of
    `sizes` rows.
    """
    frames, device = len(class_T), class_T.device
    place_T = torch.empty_like(class_T)
    place_T[class_T.argsort(stable=True)] = torch.arange(frames, device=device)
    tables, passed, first = [], 0, 0
    for count, size in zip(counts, sizes, strict=True):
        # Frames of other classes get rows as well; no token has them.
        start_T1 = ((place_T - passed) * size + first)[:, None]
        tables.append((start_T1 + torch.arange(size, device=device)).flatten())
        passed, first = passed + count, first + count * size
    tables.append(torch.arange(first, num_rows, device=device))
    return torch.cat(tables).index_select(0, row_N)
