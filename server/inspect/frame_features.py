"""Frame features and relevance from a checkpoint, with Hugging Face modules and without vLLM.

`metok inspect` uses the vision tower and projector of a LLaVA-OneVision checkpoint, or the tower of
Qwen's (`qwen_features.py`), and the alignment towers. The decoder is not loaded.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metok_vllm.alignment import (
    AlignmentTowers,
    Normalisation,
    encode_query,
    renormalise,
    text_window,
)
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout


@dataclass(frozen=True)
class FrameFeatures:
    """`feature_TD`: mean over a frame's projected patches, float32. `video`: its layout.

    `relevance_T` is None without alignment towers or without a question.
    """

    feature_TD: Tensor
    relevance_T: Tensor | None
    video: VideoLayout


class FrameEncoder:
    """Vision tower and projector of a LLaVA-OneVision checkpoint, and optional alignment towers.

    A family overrides `side`, `prepare`, `picture`, `see` and `project`.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.pixels = Normalisation.of(processor.image_mean, processor.image_std, self.side)
        self.towers: AlignmentTowers | None = None
        self.shared = False
        self._tokenizer: Any = None
        self._window = 0

    @property
    def side(self) -> int:
        """The side of a frame in pixels, as the processor makes it."""
        return int(self.model.config.vision_config.image_size)

    def add_towers(self, path: str, shared: bool = False) -> None:
        """Load alignment towers; `shared` reuses the video model's own patch features."""
        from transformers import AutoTokenizer

        self.towers = AlignmentTowers.load(path)
        self.shared = shared
        if shared:
            self.towers.share_vision(self.model.config)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._window = text_window(path)

    @torch.inference_mode()
    def encode(
        self,
        frames_THWC: NDArray[np.uint8],
        question: str,
        chunk_frames: int,
        times_s: Sequence[float] | None = None,
    ) -> FrameFeatures:
        """Features of sampled frames (uint8), `times_s` from the start of the video.

        `chunk_frames` go through the tower at a time, which bounds memory.
        """
        text_D = self._embed_question(question)
        means, images = [], []
        video, chunks = self.prepare(frames_THWC, chunk_frames, times_s)
        for pixels in chunks:
            patches_TPD = self.see(pixels, video)
            if text_D is not None:
                images.append(self._embed_images(pixels, patches_TPD, video))
            means.append(self.project(patches_TPD).mean(1, dtype=torch.float32))
        relevance_T = None
        if text_D is not None:
            relevance_T = AlignmentTowers.relevance(torch.cat(images), text_D)
        return FrameFeatures(torch.cat(means), relevance_T, video)

    def prepare(
        self,
        frames_THWC: NDArray[np.uint8],
        chunk_frames: int,
        times_s: Sequence[float] | None,
    ) -> tuple[VideoLayout, Iterable[Tensor]]:
        """The layout of the video and its pixels in chunks, [frames, C, H, W] each."""
        starts = range(0, len(frames_THWC), chunk_frames)
        chunks = (self._pixels(frames_THWC[start : start + chunk_frames]) for start in starts)
        return video_layout(self.model.config, len(frames_THWC)), chunks

    def picture(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        """The picture [T, C, H, W] of each frame of the layout, for alignment towers."""
        return pixels

    def _pixels(self, frames_THWC: NDArray[np.uint8]) -> Tensor:
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        pixels: Tensor = self.processor(
            videos=[frames_TCHW], do_sample_frames=False, return_tensors="pt"
        )["pixel_values_videos"][0]
        return pixels

    def see(self, pixels_TCHW: Tensor, video: VideoLayout) -> Tensor:
        """Patch features before the projector, [T, P, vision width]."""
        config = self.model.config
        hidden = self.model.vision_tower(pixels_TCHW, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        patches_TPD = torch.cat([hidden[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            return patches_TPD[:, 1:]
        return patches_TPD

    def _embed_question(self, question: str) -> Tensor | None:
        if self.towers is None:
            return None
        ids_WL = encode_query(self._tokenizer, question, length=self._window)
        return self.towers.embed_text(ids_WL) if len(ids_WL) else None

    def project(self, patches_TPD: Tensor) -> Tensor:
        """Patch features in the decoder's width."""
        projected_TPD: Tensor = self.model.multi_modal_projector(patches_TPD)
        return projected_TPD

    def _embed_images(self, pixels: Tensor, patches_TPD: Tensor, video: VideoLayout) -> Tensor:
        assert self.towers is not None
        if self.shared:
            return self.towers.embed_features(patches_TPD)
        target = self.towers.normalisation
        return self.towers.embed_frames(
            renormalise(self.picture(pixels, video), self.pixels, target)
        )
