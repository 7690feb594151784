"""The video layout of each model family, from a Hugging Face configuration.

Read wherever tokens are counted without the model: reports, `metok doctor`, `metok inspect`.
"""

from __future__ import annotations

from typing import Any

from metok_vllm.plan.layout import BILINEAR, VideoLayout


def video_layout(config: Any, frames: int = 1) -> VideoLayout:
    """The layout of a video of `frames` frames in a LLaVA model's prompt.

    LLaVA-OneVision pools bilinearly and closes the video with one newline. The original LLaVA-NeXT
    layout names both in its configuration (`metok_vllm.models.llava_qwen_config`).
    """
    vision = config.vision_config
    side = int(vision.image_size // vision.patch_size)
    newline = getattr(config, "mm_newline_position", "one_token")
    return VideoLayout(
        frames,
        side,
        side,
        pooling=getattr(config, "mm_spatial_pool_mode", BILINEAR),
        closes_events=newline == "one_token",
        row_newline=newline == "grid",
    )
