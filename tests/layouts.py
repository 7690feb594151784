"""Video layouts that tests count with."""

from __future__ import annotations

from metok_vllm.plan.layout import BILINEAR, VideoLayout


def square(frames: int, grid: int, pooling: str = BILINEAR) -> VideoLayout:
    """LLaVA-OneVision's layout: frames of grid x grid patches, a newline after each event."""
    return VideoLayout(frames, grid, grid, pooling=pooling, closes_events=True)
