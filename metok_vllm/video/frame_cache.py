"""Cached decoded frames for the next question about a video, in the server's process.

The key is an identity of the file with all that determines its sampled frames, so a hit equals a
new decode. Tenants do not share entries. Entries count as samples that the server holds
(`max_pending_bytes`); the least recently used are evicted before any video waits for memory.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits


@dataclass(frozen=True)
class FrameKey:
    """A video's digest, its sampling, the limits it was decoded under, and its tenant."""

    digest: bytes
    num_frames: int
    fps: float
    limits: MediaLimits
    tenant: str = ""


class FrameCache:
    """Frames by key, least recently used first out; thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[FrameKey, VideoFrames] = OrderedDict()
        self.held_bytes = 0

    def find(self, key: FrameKey) -> VideoFrames | None:
        """The frames under `key`, `cached` and with a `decode_s` of 0; shared, so read only."""
        with self._lock:
            video = self._entries.get(key)
            if video is None:
                return None
            self._entries.move_to_end(key)
        return replace(video, cached=True, decode_s=0.0)

    def keep(self, key: FrameKey, video: VideoFrames, most_bytes: int) -> None:
        """Keep frames of at most `most_bytes`, and evict older entries over `most_bytes` in all."""
        num_bytes = video.frames_THWC.nbytes
        if num_bytes > most_bytes:
            return
        with self._lock:
            self._pop(key)
            self._entries[key] = video
            self.held_bytes += num_bytes
            while self.held_bytes > most_bytes:
                self._pop(next(iter(self._entries)))

    def drop_oldest(self) -> bool:
        """Evict the least recently used frames; False where there are none.

        Their memory is free once no request uses them.
        """
        with self._lock:
            if not self._entries:
                return False
            self._pop(next(iter(self._entries)))
            return True

    def clear(self) -> None:
        """Evict all frames."""
        while self.drop_oldest():
            pass

    def _pop(self, key: FrameKey) -> None:
        video = self._entries.pop(key, None)
        if video is not None:
            self.held_bytes -= video.frames_THWC.nbytes


FRAMES = FrameCache()
# In a forked child a thread that does not exist there may hold the lock.
os.register_at_fork(after_in_child=FRAMES._reset)
