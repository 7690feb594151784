"""Qwen2.5-VL (3B to 72B) with METok.

vLLM's own model class and processor, subclassed: images, text and videos of requests that switched
METok off take vLLM's code path unchanged.
Source of what is overridden: vllm/model_executor/models/qwen2_5_vl.py, version 0.32.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from metok_vllm.models.processing import MetokInfoMixin
from metok_vllm.models.qwen_vl import SECONDS, MetokQwenVL
from metok_vllm.models.qwen_vl_processor import MetokQwenProcessorMixin
from metok_vllm.plan.layout import VideoLayout


class MetokQwen25VLInfo(MetokInfoMixin, Qwen2_5_VLProcessingInfo):
    """Processing info with METok's settings."""


class MetokQwen25VLProcessor(MetokQwenProcessorMixin, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL's processor with METok's token counts. A video has no text between its frames."""

    def num_positions(self, video: VideoLayout, index: int, processed: Any) -> int:
        # Time goes on by seconds; what follows the video starts after the largest of the axes.
        vision = self.info.get_hf_config().vision_config
        seconds = float(processed[SECONDS][index]) * getattr(vision, "tokens_per_second", 1.0)
        return max(int((video.frames - 1) * seconds) + 1, *video.grid)


@MULTIMODAL_REGISTRY.register_processor(
    MetokQwen25VLProcessor,
    info=MetokQwen25VLInfo,
    dummy_inputs=Qwen2_5_VLDummyInputsBuilder,
)
class MetokQwen25VL(MetokQwenVL, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with videos encoded by event and a decoder in stages."""
