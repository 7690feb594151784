"""How a model family takes a video: pixels, layout, vision tower, rotary positions.

What a family overrides here is all that calibration knows of it.

Shape suffixes: T frames, P patches, D features, W encoder channels, N tokens of a video, L
deepstack levels, X rotary axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.models.positions import VideoPositions
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.video import VideoFrames


@dataclass(frozen=True)
class VideoInput:
    """Pixels of one video in the processor's order, its layout, and positions with M-RoPE."""

    pixels: Tensor
    layout: VideoLayout
    positions: VideoPositions | None = None


@dataclass(frozen=True)
class VideoRows:
    """The decoder's rows of a video: `visual_ND`, and what joins the first L layers' outputs.

    `offset_NX` are distances from the video's first position; the text behind it goes on at `span`.
    """

    visual_ND: Tensor
    deepstack_LND: Tensor
    offset_NX: Tensor
    span: int


class VideoFamily(ABC):
    """Videos of a checkpoint in Hugging Face. Here: one rotary position for each token."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @abstractmethod
    def read(self, frames: VideoFrames) -> VideoInput:
        """What the server's processor makes of sampled frames. Raises MediaError."""

    @abstractmethod
    def encoder(self, config: METokConfig, towers: AlignmentTowers | None) -> Stage1Encoder:
        """The server's encoder on this model's own vision tower."""

    @abstractmethod
    def features(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        """Features in the decoder's width, [T, P, D], before any reduction."""

    def newline(self) -> Tensor | None:
        """The embedding [D] that ends events."""
        return None

    def separators(self, video: VideoLayout) -> Tensor | None:
        """Encoder rows [S, W] of the text between frames."""
        return None

    def rows(self, encoded_NW: Tensor, video: VideoLayout) -> VideoRows:
        """The decoder's rows of what the encoder returned."""
        tokens, width = encoded_NW.shape
        counted_NX = torch.arange(tokens, device=encoded_NW.device)[:, None]
        return VideoRows(encoded_NW, encoded_NW.new_zeros(0, tokens, width), counted_NX, tokens)

    def normalisation(self, side: int) -> Normalisation:
        """That of the processor's pixels."""
        processor = self.processor.video_processor
        return Normalisation.of(processor.image_mean, processor.image_std, side)
