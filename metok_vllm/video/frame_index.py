"""The frames of a video stream in presentation order, read from its packets without decoding.

Containers lie about durations and frame counts; packets are what there is to decode.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av


@dataclass(frozen=True)
class FrameIndex:
    """Frame i of a video is the one with the i-th smallest presentation time.

    `pts` holds these times in units of `time_base`, `keys` those of the keyframes, both rising.
    `timed` is false where the container does not say when each frame is shown (`pts` is then
    empty and frames are found by counting). `regular`: no keyframe is followed by frames shown
    before it (open GOP) and no packet is cut away by an edit list.
    """

    total: int
    pts: Sequence[int]
    keys: Sequence[int]
    time_base: Fraction
    fps: float
    timed: bool
    regular: bool

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last; frames last 1 / fps."""
        if self.timed:
            return float((self.pts[-1] - self.pts[0]) * self.time_base) + 1 / self.fps
        return self.total / self.fps

    def timestamp_s(self, index: int) -> float:
        """Seconds from the first frame to frame `index`."""
        if self.timed:
            return float((self.pts[index] - self.pts[0]) * self.time_base)
        return index / self.fps

    def keyframe_before(self, pts: int) -> int | None:
        """Time of the last keyframe at or before `pts`; None where there is none."""
        position = bisect_right(self.keys, pts)
        return self.keys[position - 1] if position else None


def scan(container: Any, stream: Any) -> FrameIndex:
    """Index of one video stream of an open PyAV container; reads it to the end.

    A file that breaks off yields the frames up to there, possibly none.
    """
    pts: list[int] = []
    keys: list[int] = []
    total = 0
    regular = True
    key_pts: int | None = None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_keyframe and packet.pts is not None:
                key_pts = packet.pts
                keys.append(packet.pts)
            if packet.is_discard:
                regular = False
                continue
            total += 1
            if packet.pts is None:
                continue
            if key_pts is None or packet.pts < key_pts:
                regular = False
            pts.append(packet.pts)
    except (av.FFmpegError, OSError):
        pass  # cut off: what was read so far is the video
    pts.sort()
    timed = len(pts) == total and total > 0 and len(set(pts)) == total
    time_base = stream.time_base or Fraction(1)
    return FrameIndex(
        total=total,
        pts=pts if timed else [],
        keys=sorted(keys) if timed else [],
        time_base=time_base,
        fps=_frame_rate(stream, pts if timed else [], time_base),
        timed=timed,
        regular=regular,
    )


def _frame_rate(stream: Any, pts: Sequence[int], time_base: Fraction) -> float:
    """Mean frames per second: from the frame times, else what the container says, else 1."""
    if len(pts) > 1:
        return float((len(pts) - 1) / ((pts[-1] - pts[0]) * time_base))
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else 1.0
