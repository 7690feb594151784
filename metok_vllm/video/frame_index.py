"""The frames of a video in the order in which they are shown, and where to decode each from.

Packets are not frames: two fields make one frame, a stream may start inside a group, times repeat
or are missing, keyframe marks are wrong. So an index from packets is checked while decoding.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from operator import itemgetter

from metok_vllm.video.packets import Packets


class Origin(Enum):
    """Where an index comes from."""

    PACKETS = "stated by the packets"
    DECODED = "found by decoding the whole video"
    COUNTED = "counted by decoding the whole video; frames have no packet of their own"


class WrongIndexError(Exception):
    """The decoder showed other frames than the index says."""


@dataclass(frozen=True)
class FrameIndex:
    """Frame i of a video is the i-th that a decoder shows.

    `sources` holds the packet number of each frame. `keys` are keyframes as (frame, packet), both
    rising: later frames decode without earlier packets. `times` are in units of `time_base`, empty
    where the container states none. `regular`: every packet is a frame, each with its own time, and
    none is shown before the keyframe that it follows.
    """

    sources: Sequence[int]
    keys: Sequence[tuple[int, int]]
    times: Sequence[int]
    time_base: Fraction
    fps: float
    origin: Origin
    regular: bool

    @classmethod
    def of(
        cls,
        packets: Packets,
        decoded: Sequence[int] = (),
        decoded_keys: Sequence[int] = (),
        until: int = 0,
    ) -> FrameIndex:
        """Index of the packets, with `decoded` frames in place of those before packet `until`."""
        sources = [*decoded, *packets.in_order(until)]
        marked = {*decoded_keys, *(number for number in packets.keys if number >= until)}
        keys: list[tuple[int, int]] = []
        latest = -1
        regular = len(sources) == len(packets) and sources[:1] == [0] and 0 in marked
        for frame, number in enumerate(sources):
            if number in marked and (not keys or number > keys[-1][1]):
                keys.append((frame, number))
                regular = regular and number > latest
            latest = max(latest, number)
            regular = regular and bool(keys) and number >= keys[-1][1]
        times = packets.times(sources) or []
        origin = Origin.PACKETS
        if len(packets) and until == len(packets):
            origin = Origin.DECODED if len(set(decoded)) == len(decoded) else Origin.COUNTED
        return cls(
            sources=sources,
            keys=keys if origin is not Origin.COUNTED else [],
            times=times,
            time_base=packets.time_base,
            fps=_frame_rate(packets, times),
            origin=origin,
            regular=regular and len(set(times)) == len(sources),
        )

    @property
    def total(self) -> int:
        """How many frames the video has."""
        return len(self.sources)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last; frames last 1 / fps."""
        return self.timestamp_s(self.total - 1) + 1 / self.fps

    def timestamp_s(self, index: int) -> float:
        """Seconds from the first frame to frame `index`."""
        if self.times:
            return float((self.times[index] - self.times[0]) * self.time_base)
        return index / self.fps

    def start(self, index: int) -> tuple[int, int]:
        """(frame, packet) where decoding must start to reach frame `index`; (0, 0) is the start.

        A keyframe does not serve frames that are shown before it (open GOP) or stored before it.
        """
        place = min(
            bisect_right(self.keys, index, key=itemgetter(0)),
            bisect_right(self.keys, self.sources[index], key=itemgetter(1)),
        )
        return self.keys[place - 1] if place else (0, 0)

    def walked(self, indices: Sequence[int]) -> int:
        """How many packets must be decoded to reach the frames of rising `indices`."""
        if self.origin is Origin.COUNTED:
            return indices[-1] + 1
        walked, fed = 0, -1
        for index in indices:
            fed_before = max(fed, self.start(index)[1] - 1)
            fed = max(fed, self.sources[index])
            walked += fed - min(fed, fed_before)
        return walked


def _frame_rate(packets: Packets, times: Sequence[int]) -> float:
    """Mean frames per second: from the frame times, else the container's rate, else 1."""
    if len(times) > 1:
        return float((len(times) - 1) / ((times[-1] - times[0]) * packets.time_base))
    return packets.nominal_fps or 1.0
