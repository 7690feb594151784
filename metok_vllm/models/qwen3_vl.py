"""Qwen3-VL (2B to 32B) and its mixture of experts (30B-A3B, 235B-A22B) with METok.

vLLM's own model classes and processor, subclassed: images, text and videos of requests that
switched METok off take vLLM's code path unchanged. The time of each temporal patch stands in front
of it as text, which is kept in every layer. Features of several depths of the tower (deepstack) are
pooled alongside and added after the decoder's first layers.
Source of what is overridden: vllm/model_executor/models/qwen3_vl.py and qwen3_vl_moe.py, version
0.32.

Shape suffixes: N tokens, D features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from metok_vllm.models.cache_writer import StagedInput
from metok_vllm.models.processing import MetokInfoMixin
from metok_vllm.models.qwen_vl import MetokQwenVL
from metok_vllm.models.qwen_vl_processor import MetokQwenProcessorMixin
from metok_vllm.plan.layout import VideoLayout

Ids = tuple[int, ...]


class MetokQwen3VLInfo(MetokInfoMixin, Qwen3VLProcessingInfo):
    """Processing info with METok's settings."""


class MetokQwen3VLMoeInfo(MetokInfoMixin, Qwen3VLMoeProcessingInfo):
    """The same for the mixture of experts."""


class MetokQwen3VLProcessor(MetokQwenProcessorMixin, Qwen3VLMultiModalProcessor):
    """Qwen3-VL's processor with METok's token counts."""

    @property
    def least_frames(self) -> int:
        # transformers refuses less than a temporal patch, in words that repeat every pixel.
        return int(self.info.get_hf_config().vision_config.temporal_patch_size)

    def separators(self, index: int, processed: Any) -> tuple[tuple[Ids, ...], tuple[Ids, ...]]:
        """Ids in front of and behind each temporal patch, from vLLM's own text of a video."""
        config = self.info.get_hf_config()
        times = processed["timestamps"][index]
        token = config.video_token_id
        text = self.get_video_repl(
            tokens_per_frame=[1] * len(times),
            timestamps=times,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=token,
        )
        before: list[Ids] = []
        after: list[Ids] = []
        current: list[int] = []
        for token_id in text.full:
            if token_id == token:
                before.append(tuple(current))
                current = []
            else:
                current.append(token_id)
                if token_id == config.vision_end_token_id:
                    after.append(tuple(current))
                    current = []
        assert not current
        assert len(before) == len(after) == len(times)
        return tuple(before), tuple(after)

    def num_positions(self, video: VideoLayout, index: int, processed: Any) -> int:
        # Within a frame the axes are rows and columns; its text goes on after the larger one.
        return video.separators + video.frames * max(video.grid)


class _MetokQwen3VL(MetokQwenVL):
    """What the dense model and the mixture of experts share."""

    deepstack_num_level: int
    _get_deepstack_input_embeds: Any
    _clear_deepstack_input_embeds: Any

    def run_staged(self, given: StagedInput, positions: Tensor, hidden_ND: Tensor) -> Tensor:
        levels = self._get_deepstack_input_embeds(len(hidden_ND))
        count = 0 if levels is None else self.deepstack_num_level
        added = [levels[f"deepstack_input_embeds_{level}"] for level in range(count)]
        staged_ND = self.staged(given, positions, hidden_ND, added)
        self._clear_deepstack_input_embeds(len(hidden_ND))
        return staged_ND


@MULTIMODAL_REGISTRY.register_processor(
    MetokQwen3VLProcessor,
    info=MetokQwen3VLInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class MetokQwen3VL(_MetokQwen3VL, Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with videos encoded by event and a decoder in stages."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokQwen3VLProcessor,
    info=MetokQwen3VLMoeInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class MetokQwen3VLMoe(_MetokQwen3VL, Qwen3VLMoeForConditionalGeneration):
    """vLLM's mixture of experts of Qwen3-VL, the same way."""
