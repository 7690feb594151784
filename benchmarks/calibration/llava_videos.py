"""Videos of LLaVA-OneVision in the Hugging Face layout.

Shape suffixes: T frames, C channels, H height, W width, P patches, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from metok_vllm.alignment import AlignmentTowers
from metok_vllm.benchmarks.calibration.videos import VideoFamily, VideoInput
from metok_vllm.config import METokConfig
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.video import VideoFrames


class LlavaVideos(VideoFamily):
    """Square frames, a projector behind the tower, and a newline that ends events."""

    def read(self, frames: VideoFrames) -> VideoInput:
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames.frames_THWC))
        pixels_TCHW: Tensor = self.processor.video_processor(
            videos=[frames_TCHW.permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
        )["pixel_values_videos"][0]
        pixels_TCHW = pixels_TCHW.to(self.model.device, self.model.dtype)
        return VideoInput(pixels_TCHW, video_layout(self.model.config, len(pixels_TCHW)))

    def encoder(self, config: METokConfig, towers: AlignmentTowers | None) -> Stage1Encoder:
        pixels = self.normalisation(self.model.config.vision_config.image_size)
        project = self.model.model.multi_modal_projector
        return Stage1Encoder(config, lambda x, _: self._see(x), project, pixels, towers)

    def features(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        features_TPD: Tensor = self.model.model.multi_modal_projector(self._see(pixels))
        return features_TPD

    def newline(self) -> Tensor:
        newline_D: Tensor = self.model.model.image_newline
        return newline_D

    def _see(self, pixels_TCHW: Tensor) -> Tensor:
        """Patch features before the projector, [T, P, vision width]."""
        config = self.model.config
        tower = self.model.model.vision_tower
        hidden = tower(pixels_TCHW, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else layers
        vision_TPD = torch.cat([hidden[layer] for layer in layers], dim=-1)
        has_class_token = config.vision_feature_select_strategy == "default"
        return vision_TPD[:, 1:] if has_class_token else vision_TPD
