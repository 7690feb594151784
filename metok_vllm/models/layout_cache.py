"""Layouts of videos that the processor has seen, by their keys in vLLM's processor cache.

A layout may follow from what the model's own processor makes of the pixels. On a hit of vLLM's
processor cache the pixels are not processed again, and the plan still needs the layout.
"""

from __future__ import annotations

from collections import OrderedDict

from metok_vllm.plan.layout import VideoLayout

MAX_VIDEOS, MAX_SEPARATORS = 4096, 1_000_000


class LayoutCache:
    """The least recently used layouts go first; their separators are what takes memory."""

    def __init__(self, max_videos: int = MAX_VIDEOS, max_separators: int = MAX_SEPARATORS) -> None:
        self.max_videos, self.max_separators = max_videos, max_separators
        self.separators = 0
        self.entries: OrderedDict[str, VideoLayout] = OrderedDict()

    def put(self, key: str, video: VideoLayout) -> None:
        """Keep the layout of a video, also if it is the only one and too large."""
        self._drop(key)
        self.entries[key] = video
        self.separators += video.separators
        while len(self.entries) > 1 and (
            len(self.entries) > self.max_videos or self.separators > self.max_separators
        ):
            self._drop(next(iter(self.entries)))

    def get(self, key: str) -> VideoLayout | None:
        """The layout of a video; None if it is not kept."""
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def _drop(self, key: str) -> None:
        dropped = self.entries.pop(key, None)
        if dropped is not None:
            self.separators -= dropped.separators
