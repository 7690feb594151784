"""Decoded frames for the next question about a video, in the process that reads videos.

The key is the file's own bytes with everything that decides which frames come of them, so a hit is
what decoding would give; tenants do not share what is kept. It still counts among the samples that
the server holds (`max_pending_bytes`), and goes, least recently used first, before any video has to
wait for memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits


@dataclass(frozen=True)
class FrameKey:
    """A video's bytes, the sampling asked for, the limits it was decoded under, and for whom."""

    digest: bytes
    num_frames: int
    fps: float
    limits: MediaLimits
    tenant: str = ""

    @classmethod
    def of(
        cls, data: bytes, num_frames: int, fps: float, limits: MediaLimits, tenant: str = ""
    ) -> FrameKey:
        return cls(hashlib.sha256(data).digest(), num_frames, fps, limits, tenant)


class FrameCache:
    """Frames by key, at most `most_bytes` of them as each call says; thread-safe."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[FrameKey, VideoFrames] = OrderedDict()
        self.held_bytes = 0

    def find(self, key: FrameKey) -> VideoFrames | None:
        """The frames kept under `key`, marked as `cached`; they are shared and not to be written.

        No time was spent on decoding them: `decode_s` is 0.
        """
        with self._lock:
            video = self._entries.get(key)
            if video is None:
                return None
            self._entries.move_to_end(key)
        return replace(video, cached=True, decode_s=0.0)

    def keep(self, key: FrameKey, video: VideoFrames, most_bytes: int) -> None:
        """Keep frames, dropping the least recently used beyond `most_bytes`; not more than that."""
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
        """Forget the least recently used frames; False where there are none.

        Their memory comes back once no request uses them either.
        """
        with self._lock:
            if not self._entries:
                return False
            self._pop(next(iter(self._entries)))
            return True

    def clear(self) -> None:
        """Forget everything."""
        while self.drop_oldest():
            pass

    def _pop(self, key: FrameKey) -> None:
        video = self._entries.pop(key, None)
        if video is not None:
            self.held_bytes -= video.frames_THWC.nbytes


FRAMES = FrameCache()
# In a forked child the lock may be held by a thread that is not there.
os.register_at_fork(after_in_child=FRAMES._reset)
