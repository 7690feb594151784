"""LLaVA-OneVision (0.5B to 72B) with METok.

vLLM's own model class and processor, subclassed: images, text and videos of requests that switched
METok off take vLLM's code path unchanged.
Source of what is overridden: vllm/model_executor/models/llava_onevision.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processor import cached_get_video_processor

from metok_vllm.alignment import Normalisation
from metok_vllm.models.family import MetokModel
from metok_vllm.models.processing import MetokInfoMixin, MetokProcessorMixin
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.video.limits import MediaLimits


class MetokLlavaInfo(MetokInfoMixin, LlavaOnevisionProcessingInfo):
    """Processing info with METok's settings and its limit on frames."""

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        # vLLM profiles 16 frames; memory and encoder cache must fit the longest dense video.
        longest = min(self._get_max_video_frames(seq_len), MediaLimits.from_env().max_frames)
        return int(max(longest // max(mm_counts.get("video", 0), 1), 1))


class MetokLlavaOnevisionProcessor(MetokProcessorMixin, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's processor with METok's token counts."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokLlavaOnevisionProcessor,
    info=MetokLlavaInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class MetokLlavaOnevision(MetokModel, LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with videos encoded by event and a decoder in stages."""

    def see(self, pixels: Tensor, video: VideoLayout | None = None) -> Tensor:
        strategy = self.config.vision_feature_select_strategy
        features: Tensor = self.vision_tower(pixels, feature_select_strategy=strategy)
        return features

    def project(self, features_TPD: Tensor) -> Tensor:
        projected: Tensor = self.multi_modal_projector(features_TPD)
        return projected

    def newline(self) -> Tensor:
        newline: Tensor = self.image_newline
        return newline

    def vision_weight(self) -> Tensor:
        return self.newline()

    def video_normalisation(self) -> Normalisation:
        processor = cached_get_video_processor(
            self.model_config.model, revision=self.model_config.revision
        )
        size = self.config.vision_config.image_size
        return Normalisation.of(processor.image_mean, processor.image_std, size)

    def _process_video_pixels(self, inputs: Any) -> Any:
        # vLLM 0.32 returns [1, N, D] items when videos of unequal length meet in one step, and its
        # own check of encoder outputs then ends the engine.
        embeddings = super()._process_video_pixels(inputs)
        return [item.squeeze(0) if item.dim() == 3 else item for item in embeddings]
