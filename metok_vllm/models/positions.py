"""Rotary positions with three axes (M-RoPE) that travel with a video's tokens.

Which tokens stay is decided in the encoder. So each takes its distance from the video's first
position with it, as six channels behind its features: two bytes for each axis, exact in bfloat16.

Shape suffixes: T frames, P features of a frame, S separators, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

AXES, BYTE = 3, 256
MAX_SPAN = BYTE**2 - 1


@dataclass(frozen=True)
class VideoPositions:
    """Distances of a dense video's tokens from its first position, int64 on the host.

    `feature_TP3` are those of the features, `separator_S3` those of the text between frames.
    """

    feature_TP3: Tensor
    separator_S3: Tensor


def to_channels(offset_N3: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances [N, 3] of at most MAX_SPAN as channels [N, 6]: high bytes, then low bytes."""
    high_N3 = offset_N3.div(BYTE, rounding_mode="floor")
    return torch.cat([high_N3, offset_N3 - BYTE * high_N3], dim=1).to(dtype)


def from_channels(channel_N6: Tensor) -> Tensor:
    """Distances int64 [N, 3]."""
    whole_N6 = channel_N6.to(torch.int64)
    return BYTE * whole_N6[:, :AXES] + whole_N6[:, AXES:]
