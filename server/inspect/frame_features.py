"""Frame features and relevance from a checkpoint, with Hugging Face modules and without vLLM.

`metok inspect` uses the vision tower and projector of a LLaVA-OneVision checkpoint, and the
alignment towers. The decoder is not loaded.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features.
"""

from __future__ import annotations

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
from metok_vllm.errors import ConfigError
from metok_vllm.hf_loading import quiet_loading, require_all_weights
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.torch_shims import ensure_torchvision_ops


@dataclass(frozen=True)
class FrameFeatures:
    """`feature_TD`: mean over a frame's projected patches, float32. `video`: the layout of a
    video.

    `relevance_T` is None without alignment towers or without a question.
    """

    feature_TD: Tensor
    relevance_T: Tensor | None
    video: VideoLayout


class FrameEncoder:
    """Vision tower and projector of a LLaVA-OneVision checkpoint, and optional alignment towers."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        vision = model.config.vision_config
        self.video = video_layout(model.config)
        self.pixels = Normalisation.of(processor.image_mean, processor.image_std, vision.image_size)
        self.towers: AlignmentTowers | None = None
        self.shared = False
        self._tokenizer: Any = None
        self._window = 0

    @classmethod
    def load(cls, path: str) -> FrameEncoder:
        """Load from a path or hub name. Raises ConfigError if it cannot be loaded or used."""
        ensure_torchvision_ops()
        from transformers import AutoConfig, AutoVideoProcessor, LlavaOnevisionModel

        with quiet_loading():
            config = AutoConfig.from_pretrained(path)
            if config.model_type != "llava_onevision":
                raise ConfigError(
                    f"metok inspect reads LLaVA-OneVision checkpoints, got a {config.model_type!r}"
                )
            # With no decoder layers, their weights in the checkpoint are not read.
            config.text_config.num_hidden_layers = 0
            config.text_config.layer_types = []
            processor = AutoVideoProcessor.from_pretrained(path)
            model, info = LlavaOnevisionModel.from_pretrained(
                path, config=config, dtype=torch.float32, output_loading_info=True
            )
        require_all_weights(info)
        return cls(model.eval(), processor)

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
        self, frames_THWC: NDArray[np.uint8], question: str, chunk_frames: int
    ) -> FrameFeatures:
        """Features of decoded frames (uint8); `chunk_frames` at a time, which bounds memory."""
        text_D = self._embed_question(question)
        means, images = [], []
        for start in range(0, len(frames_THWC), chunk_frames):
            pixels_TCHW = self._pixels(frames_THWC[start : start + chunk_frames])
            patches_TPD = self._patch_features(pixels_TCHW)
            if text_D is not None:
                images.append(self._embed_images(pixels_TCHW, patches_TPD))
            projected_TPD = self.model.multi_modal_projector(patches_TPD)
            means.append(projected_TPD.mean(1, dtype=torch.float32))
        relevance_T = None
        if text_D is not None:
            relevance_T = AlignmentTowers.relevance(torch.cat(images), text_D)
        return FrameFeatures(torch.cat(means), relevance_T, self.video)

    def _pixels(self, frames_THWC: NDArray[np.uint8]) -> Tensor:
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        pixels: Tensor = self.processor(
            videos=[frames_TCHW], do_sample_frames=False, return_tensors="pt"
        )["pixel_values_videos"][0]
        return pixels

    def _patch_features(self, pixels_TCHW: Tensor) -> Tensor:
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

    def _embed_images(self, pixels_TCHW: Tensor, patches_TPD: Tensor) -> Tensor:
        assert self.towers is not None
        if self.shared:
            return self.towers.embed_features(patches_TPD)
        target = self.towers.normalisation
        return self.towers.embed_frames(renormalise(pixels_TCHW, self.pixels, target))
