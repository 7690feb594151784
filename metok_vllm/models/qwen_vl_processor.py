"""METok in the processors of Qwen2.5-VL and Qwen3-VL.

Frames keep their shape, and two sampled frames become one temporal patch, so a video's layout is
known once the model's own processor has resized it. Qwen3-VL writes the time of each temporal patch
in front of it; those ids come from vLLM's own text of a video.
Source: vllm/model_executor/models/qwen2_5_vl.py and qwen3_vl.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from transformers.video_utils import VideoMetadata
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.parse import MultiModalDataItems, VideoProcessorItems

from metok_vllm.models.positions import MAX_SPAN
from metok_vllm.models.processing import MetokProcessorMixin
from metok_vllm.plan.families import patch_layout
from metok_vllm.plan.layout import VideoLayout

# What transformers knows of a video; ours (frame times, the tenant) stays with vLLM.
METADATA = {field.name for field in fields(VideoMetadata)} | {"do_sample_frames"}


class MetokQwenProcessorMixin(MetokProcessorMixin):
    """Mixed in before the processor of a Qwen video model."""

    def separators(self, index: int, processed: Any) -> tuple[Any, Any]:
        """Text ids in front of and behind each temporal patch; both empty without such text."""
        return (), ()

    def num_positions(self, video: VideoLayout, index: int, processed: Any) -> int:
        """Rotary positions from the first of a dense video's tokens to the one after its last."""
        raise NotImplementedError

    def media_tokens(self) -> dict[str, int]:
        config = self.info.get_hf_config()
        return {"image": config.image_token_id, "video": config.video_token_id}

    def framing_tokens(self) -> tuple[int, ...]:
        config = self.info.get_hf_config()
        return config.vision_start_token_id, config.vision_end_token_id

    def video_layout(
        self, videos: VideoProcessorItems, index: int, processed: Any
    ) -> VideoLayout | None:
        if processed is None:
            return None
        vision = self.info.get_hf_config().vision_config
        frames, height, width = map(int, processed["video_grid_thw"][index])
        merge = int(vision.spatial_merge_size)
        before, after = self.separators(index, processed)
        video = patch_layout(vision, frames, height // merge, width // merge, before, after)
        return replace(video, positions=self.num_positions(video, index, processed))

    def check_positions(self, layouts: Sequence[VideoLayout], tokens: Sequence[int]) -> None:
        # METok's videos have fewer tokens than positions, so the context length does not bound
        # the latter; the model has MAX_SPAN positions more than that.
        most = max(video.positions for video in layouts)
        skipped = sum(video.positions - n for video, n in zip(layouts, tokens, strict=True))
        if max(most, skipped) > MAX_SPAN:
            raise VLLMValidationError(
                f"the videos have {most} rotary positions, {skipped} more than tokens; METok takes "
                f"at most {MAX_SPAN}: send fewer or smaller frames"
            )

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        known = {name: _with_known_metadata(items) for name, items in mm_items.items()}
        return super()._apply_hf_processor_main(MultiModalDataItems(known), hf_kwargs)


def _with_known_metadata(items: Any) -> Any:
    """Videos with the metadata alone that transformers takes; other items as they are."""
    if not isinstance(items, VideoProcessorItems):
        return items
    videos = [
        (item[0], {name: value for name, value in item[1].items() if name in METADATA})
        if isinstance(item, tuple)
        else item
        for item in items.data
    ]
    return VideoProcessorItems(videos, metadata=items.metadata)
