"""Video layouts that tests count with."""

from __future__ import annotations

from types import SimpleNamespace

from metok_vllm.plan.layout import BILINEAR, VideoLayout

# The fields that decide a layout, of published configurations.
QWEN2_5_VL = SimpleNamespace(
    model_type="qwen2_5_vl",
    vision_config=SimpleNamespace(patch_size=14, spatial_merge_size=2, temporal_patch_size=2),
)
QWEN3_VL = SimpleNamespace(
    model_type="qwen3_vl",
    vision_config=SimpleNamespace(patch_size=16, spatial_merge_size=2, temporal_patch_size=2),
)


def square(frames: int, grid: int, pooling: str = BILINEAR) -> VideoLayout:
    """LLaVA-OneVision's layout: frames of grid x grid patches, a newline after each event."""
    return VideoLayout(frames, grid, grid, pooling=pooling, closes_events=True)
