"""LongVA, LLaVA-Video and LLaVA-OneVision in LLaVA-NeXT's own layout, plain and with METok.

vLLM's LLaVA-OneVision with the published weight names, pooling, newlines and image tiles.
Source: EvolvingLMMs-Lab/LongVA at f4c8781d, longva/longva/model/llava_arch.py (`get_2dPool`,
"unires"); LLaVA-VL/LLaVA-NeXT at df179663, llava/model/llava_arch.py (`mm_newline_position`).

Shape suffixes: T frames or tiles, P patches, C channels, H height, W width, D features, N tokens.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape
from vllm.config import VllmConfig
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import ImageSize

from metok_vllm.alignment import Normalisation
from metok_vllm.kernels.adaptive_pool import pool_frames
from metok_vllm.models import llava_qwen_processor
from metok_vllm.models.family import MetokModel
from metok_vllm.models.llava_onevision import MetokLlavaInfo
from metok_vllm.models.llava_qwen_config import UNIRES, LlavaQwenConfig
from metok_vllm.models.packing import dense_tokens
from metok_vllm.models.processing import MetokProcessorMixin
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import AVERAGE, DENSE_STRIDE, VideoLayout


class LlavaQwenInfo(LlavaOnevisionProcessingInfo):
    """Token counts of the published layout, and a processor that no file describes."""

    def get_hf_config(self) -> Any:
        config = self.ctx.get_hf_config(LlavaQwenConfig)
        ids = self._media_ids
        config.image_token_index, config.video_token_index = ids
        return config

    @cached_property
    def _media_ids(self) -> tuple[int, int]:
        tokenizer: Any = self.get_tokenizer()
        names = (llava_qwen_processor.IMAGE_TOKEN, llava_qwen_processor.VIDEO_TOKEN)
        image, video = tokenizer.convert_tokens_to_ids(list(names))
        return int(image), int(video)

    def get_hf_processor(self, **kwargs: object) -> Any:
        return self._processor

    @cached_property
    def _processor(self) -> Any:
        return llava_qwen_processor.make_processor(self.get_hf_config(), self.get_tokenizer())

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        config = self.get_hf_config()
        if config.mm_patch_merge_type != UNIRES:
            return int(
                super().get_num_image_tokens(image_width=image_width, image_height=image_height)
            )
        side = int(config.vision_config.image_size)
        rows, columns = get_anyres_image_grid_shape(
            (image_height, image_width), config.image_grid_pinpoints, side
        )
        return int(rows * columns) * _unires_layout(config).frame_features(DENSE_STRIDE)

    def get_image_size_with_most_features(self) -> ImageSize:
        config = self.get_hf_config()
        if config.mm_patch_merge_type != UNIRES:
            return super().get_image_size_with_most_features()
        height, width = max(config.image_grid_pinpoints, key=lambda size: size[0] * size[1])
        return ImageSize(width=width, height=height)

    def get_num_video_tokens(self, *, image_width: int, image_height: int, num_frames: int) -> int:
        return video_layout(self.get_hf_config(), num_frames).dense_tokens()


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionMultiModalProcessor,
    info=LlavaQwenInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class LlavaQwen(LlavaOnevisionForConditionalGeneration):
    """The published models without METok."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.vision_tower.vision_tower.": "vision_tower.",
            "model.mm_projector.0.": "multi_modal_projector.linear_1.",
            "model.mm_projector.2.": "multi_modal_projector.linear_2.",
            "model.image_newline": "image_newline",
            # Written by training with options: `add_faster_video` is refused, and the published
            # inference leaves the resampler out.
            "model.faster_token": None,
            "model.vision_resampler.": None,
            "model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        },
        # Buffers of older transformers, and SigLIP's head, which the published code replaces.
        orig_to_new_substr={".position_ids": None, "vision_model.head.": None},
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.config.mm_patch_merge_type == UNIRES:
            self.image_newline = None  # the published model has no such weight

    def see(self, pixels: Tensor, video: VideoLayout | None = None) -> Tensor:
        """Patch features [T, P, vision width] of frames or tiles; CLIP's start with its class."""
        features: Tensor = self.vision_tower(pixels, feature_select_strategy="full")
        return features

    def project(self, features_TPD: Tensor) -> Tensor:
        """Patches in the decoder's width [T, P, D], without the class token."""
        strategy = self.config.vision_feature_select_strategy
        patches_TPD = features_TPD[:, 1:] if strategy == "default" else features_TPD
        projected: Tensor = self.multi_modal_projector(patches_TPD)
        return projected

    def _process_video_pixels(self, inputs: Any) -> list[Tensor]:
        """Dense tokens [N0, D] of each video, pooled and closed as its configuration says."""
        videos = []
        for pixels_TCHW in inputs["pixel_values_videos"]:
            x_TPD = self.project(self.see(pixels_TCHW))
            layout = video_layout(self.config, len(pixels_TCHW))
            videos.append(dense_tokens(x_TPD, self.image_newline, layout))
        return videos

    def _merge_image_patch_embeddings(
        self, image_size: Tensor, patch_embeddings: Tensor, **kwargs: Any
    ) -> Tensor:
        """Tokens [N, D] of one image from its base tile and its tiles [T, P, D].

        "unires" drops the base tile and pools every other like a frame of a video.
        """
        if self.config.mm_patch_merge_type != UNIRES:
            merged: Tensor = super()._merge_image_patch_embeddings(
                image_size, patch_embeddings, **kwargs
            )
            return merged
        side = int(self.config.vision_config.image_size)
        size = [int(edge) for edge in torch.as_tensor(image_size).tolist()]
        rows, columns = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, side)
        # A batch may pad the tiles of an image.
        tiles_TPD = patch_embeddings[1 : 1 + rows * columns]
        layout = _unires_layout(self.config)
        pooled_TPD = pool_frames(tiles_TPD, layout.grid, DENSE_STRIDE, layout.pooling)
        return pooled_TPD.flatten(0, 1)


def _unires_layout(config: Any) -> VideoLayout:
    """A tile of an image: the published code pools it by average, whatever videos do."""
    frame = video_layout(config)
    return VideoLayout(1, frame.rows, frame.columns, pooling=AVERAGE)


class MetokLlavaQwenInfo(MetokLlavaInfo, LlavaQwenInfo):
    """The published token counts with METok's settings."""


class MetokLlavaQwenProcessor(MetokProcessorMixin, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's processor with METok's token counts."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokLlavaQwenProcessor,
    info=MetokLlavaQwenInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class MetokLlavaQwen(MetokModel, LlavaQwen):
    """The published models with videos encoded by event and a decoder in stages."""

    see = LlavaQwen.see
    project = LlavaQwen.project

    @property
    def class_token(self) -> bool:
        """CLIP's features start with its class token."""
        return llava_qwen_processor.is_clip(self.config)

    def newline(self) -> Tensor | None:
        newline: Tensor | None = self.image_newline
        return newline

    def vision_weight(self) -> Tensor:
        weight: Tensor = self.multi_modal_projector.linear_1.weight
        return weight

    def video_normalisation(self) -> Normalisation:
        return llava_qwen_processor.normalisation(self.config)
