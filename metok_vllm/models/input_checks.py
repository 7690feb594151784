"""Multimodal inputs that vLLM would fail over later, refused with words for whoever sent them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.parse import VideoProcessorItems

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.plan.layout import VideoLayout


def check_placeholders(inputs: Any, tokens: Mapping[str, int]) -> None:
    """Raise VLLMValidationError where the prompt lacks an item's placeholder.

    `tokens` are the placeholders' token ids by modality. Truncation may have cut one away.
    """
    for modality, count in inputs.mm_data_items.get_all_counts().items():
        found = inputs.prompt.count(tokens[modality])
        if found < count:
            raise VLLMValidationError(
                f"the prompt has {found} placeholders for {count} {modality} items; "
                "truncate_prompt_tokens may have cut them away"
            )


def check_strides(config: METokConfig, video: VideoLayout) -> None:
    """Raise VLLMValidationError for strides that leave a frame of the model no token."""
    if 1 not in config.running_stages:
        return
    for stride in config.strides:
        if stride % video.unit:
            raise VLLMValidationError(
                f"metok.strides must be multiples of {video.unit}, the patches a side that this "
                f"model merges, got {stride}",
                parameter="metok.strides",
            )
        if not video.frame_features(stride):
            raise VLLMValidationError(
                f"metok.strides must not exceed the {min(video.grid) * video.unit} patches of a "
                f"frame's side, got {stride}",
                parameter="metok.strides",
            )


def check_reduction(config: METokConfig, video: VideoLayout) -> None:
    """Raise VLLMValidationError for a reduction that the model does not have."""
    if 1 not in config.running_stages:
        return
    try:
        video.check_reduction(config.reduce)
    except ConfigError as error:
        raise VLLMValidationError(str(error), parameter="metok.reduce") from error


def check_frames(videos: VideoProcessorItems, least: int = 1) -> None:
    """Raise ValueError for a video of fewer than `least` frames, by its place in the request."""
    count = videos.get_count()
    for index in range(count):
        video = videos.get(index)
        # Where a model needs metadata, a video is a pair of frames and metadata.
        frames = video[0] if isinstance(video, tuple) else video
        if frames is not None and len(frames) < least:
            has = "no frames" if len(frames) == 0 else f"{len(frames)} frame"
            wanted = "" if least == 1 else f"; this model needs at least {least}"
            raise ValueError(f"video {index + 1} of the {count} in the request has {has}{wanted}")
