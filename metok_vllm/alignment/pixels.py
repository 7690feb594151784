"""Converts frames from the video model's normalisation to the alignment tower's.

Frames are decoded, resized and copied to the device once. Renormalising them there costs little
compared with running a tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Channel mean and standard deviation of an image processor, and its image side in pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], size: int) -> Normalisation:
        """From the lists of an image processor's configuration."""
        return cls((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), size)


def renormalise(pixels_TCHW: Tensor, source: Normalisation, target: Normalisation) -> Tensor:
    """Pixels with `target`'s mean, deviation and size, in their own dtype."""
    if source == target:
        return pixels_TCHW
    x = pixels_TCHW.float()
    x = x * _channels(source.std, x) + _channels(source.mean, x)
    if x.shape[-1] != target.size or x.shape[-2] != target.size:
        x = F.interpolate(
            x, size=(target.size, target.size), mode="bilinear", antialias=True
        ).clamp_(0, 1)
    x = (x - _channels(target.mean, x)) / _channels(target.std, x)
    return x.to(pixels_TCHW.dtype)


def value_range(pixels: Normalisation, like: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each channel, [1, 3, 1, 1] on the device of `like`."""
    mean, std = _channels(pixels.mean, like), _channels(pixels.std, like)
    return -mean / std, (1 - mean) / std


def _channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return _channels_on(values, like.device).to(like.dtype)


@lru_cache(maxsize=64)
def _channels_on(values: tuple[float, float, float], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # cached, so it must also work outside of inference mode
        return torch.tensor(values, device=device).view(1, 3, 1, 1)
