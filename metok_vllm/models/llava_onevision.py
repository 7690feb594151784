"""LLaVA-OneVision (0.5B to 72B) with METok.

vLLM's own model class and processor, subclassed: images, text and videos of requests that switched
METok off take vLLM's code path unchanged.
Source of what is overridden: vllm/model_executor/models/llava_onevision.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.logger import init_logger
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processor import cached_get_video_processor

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.models import request as wire
from metok_vllm.models.cache_writer import StagedInput
from metok_vllm.models.processing import MetokProcessorMixin
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.models.staged_decoder import StagedDecoder
from metok_vllm.plan.layers import StageLayout
from metok_vllm.video.limits import MediaLimits

logger = init_logger("vllm.metok")


class MetokLlavaOnevisionInfo(LlavaOnevisionProcessingInfo):
    """Processing info with METok's settings and its limit on frames."""

    @cached_property
    def metok(self) -> METokConfig:
        return METokConfig.from_dict(self.get_hf_config().metok)

    @cached_property
    def metok_grid(self) -> int:
        return int(self.get_vision_encoder_info().get_patch_grid_length())

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        # vLLM profiles 16 frames; memory and encoder cache must fit the longest dense video.
        longest = min(self._get_max_video_frames(seq_len), MediaLimits.from_env().max_frames)
        return int(max(longest // max(mm_counts.get("video", 0), 1), 1))


class MetokLlavaOnevisionProcessor(MetokProcessorMixin, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision's processor with METok's token counts."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokLlavaOnevisionProcessor,
    info=MetokLlavaOnevisionInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class MetokLlavaOnevision(LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with videos encoded by event and a decoder in stages."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.model_config = vllm_config.model_config
        self.metok = METokConfig.from_dict(self.config.metok)
        self.encoder_cache_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self._stage1: Stage1Encoder | None = None

    def load_weights(self, weights: Any) -> set[str]:
        loaded: set[str] = super().load_weights(weights)
        # Load the towers while vLLM profiles memory; cached features are stale after a reload.
        self.stage1.video.cache.clear()
        return loaded

    @property
    def stage1(self) -> Stage1Encoder:
        """The encoder of METok requests; its towers are not part of this module's weights."""
        if self._stage1 is None:
            self._stage1 = self._build_stage1()
        return self._stage1

    @cached_property
    def staged(self) -> StagedDecoder:
        """The decoder in stages, for steps with a METok prompt."""
        decoder = self.language_model.model
        layout = StageLayout.of(self.metok.pruning_layers, len(decoder.layers))
        return StagedDecoder(
            decoder.layers,
            decoder.norm,
            layout,
            _attention_of,
            self.stage1.token_events,
            mean_over_ranks,
            self.stage1.events.record_prefill,
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        *,
        metok_staged: StagedInput | None = None,
        **kwargs: object,
    ) -> Any:
        """As vLLM's; a step with METok prompts runs in stages."""
        if metok_staged is None:
            return super().forward(
                input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
            )
        assert inputs_embeds is not None, "a step with a video has embeddings"
        return self.staged(metok_staged, positions, inputs_embeds)

    def embed_multimodal(self, **kwargs: object) -> Any:
        """As vLLM's; a video of a request with METok is compressed to [N1, D]."""
        stage1 = self.stage1  # vLLM's profiling run needs the towers as well
        fields: Any = kwargs.pop(wire.FIELD, None)
        requests = wire.unpack(fields, self.metok) if fields is not None else []
        if not any(requests):
            return super().embed_multimodal(**kwargs)
        videos: Any = kwargs["pixel_values_videos"]
        assert len(videos) == len(requests)
        dense = [i for i, request in enumerate(requests) if request is None]
        outputs: dict[int, Tensor] = {}
        if dense:
            pixels = [videos[i] for i in dense]
            outputs.update(
                zip(dense, super().embed_multimodal(pixel_values_videos=pixels), strict=True)
            )
        for i, request in enumerate(requests):
            if request is not None:
                pixels_TCHW = videos[i].to(self.image_newline.dtype)
                outputs[i] = stage1.encode(pixels_TCHW, self.image_newline, request)
        return tuple(outputs[i] for i in range(len(requests)))

    def _process_video_pixels(self, inputs: Any) -> Any:
        # vLLM 0.32 returns [1, N, D] items when videos of unequal length meet in one step, and its
        # own check of encoder outputs then ends the engine.
        embeddings = super()._process_video_pixels(inputs)
        return [item.squeeze(0) if item.dim() == 3 else item for item in embeddings]

    def _vision_features(self, pixels_TCHW: Tensor) -> Tensor:
        strategy = self.config.vision_feature_select_strategy
        features: Tensor = self.vision_tower(pixels_TCHW, feature_select_strategy=strategy)
        return features

    def _build_stage1(self) -> Stage1Encoder:
        vision = self.config.vision_config
        processor = cached_get_video_processor(
            self.model_config.model, revision=self.model_config.revision
        )
        pixels = Normalisation.of(processor.image_mean, processor.image_std, vision.image_size)
        stage1 = Stage1Encoder(
            self.metok,
            self._vision_features,
            self.multi_modal_projector,
            vision.image_size // vision.patch_size,
            pixels,
            self._load_towers(),
            self.encoder_cache_tokens,
        )
        stage1.video.cache.reserve(self.image_newline.device)
        return stage1

    def _load_towers(self) -> AlignmentTowers | None:
        path = self.metok.alignment_model
        if path is None or self.metok.alignment_mode == "none":
            logger.info(
                "METok: no alignment towers; a frame's relevance is how much it differs from its "
                "event's mean. Set alignment_model to a SigLIP or CLIP to rank by the question."
            )
            return None
        parameter: torch.nn.Parameter = self.image_newline
        towers = AlignmentTowers.load(path, parameter.device, parameter.dtype)
        if self.metok.alignment_mode == "shared":
            towers.share_vision(self.config)
        return towers


def _attention_of(layer: Any) -> Any:
    return layer.self_attn.attn


def mean_over_ranks(scores: Tensor) -> Tensor:
    """The mean over tensor parallel ranks, so that all select alike; each has as many heads."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return scores
    total: Tensor = tensor_model_parallel_all_reduce(scores)
    return total.div(ranks)
