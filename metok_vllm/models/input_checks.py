"""Multimodal inputs that vLLM would fail over later, refused with words for whoever sent them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.parse import VideoProcessorItems


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


def check_frames(videos: VideoProcessorItems) -> None:
    """Raise ValueError for a video without frames, by its place in the request."""
    count = videos.get_count()
    for index in range(count):
        if videos.get(index) is not None and videos.get_num_frames(index) == 0:
            raise ValueError(f"video {index + 1} of the {count} in the request has no frames")
