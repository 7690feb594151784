"""What a container says of the packets of a video stream, read without decoding any."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video.limits import MediaLimits

# The longest video at the highest rate of a camera has 144,000 frames (600 s at 240 a second).
MAX_PACKETS = 500_000
# Set in the first byte of a VP8 packet, but for frames that are only leant on (altref).
SHOWN_BY_VP8 = 0x10
# A time that the container does not state.
UNKNOWN = -(1 << 63)


@dataclass(frozen=True)
class Packets:
    """The packets of one stream, numbered in the order in which they are stored and decoded.

    `pts` and `dts` are in units of `time_base`. Times start over at the `joins` of recordings;
    `runs` counts those up to each packet. `hidden` packets are decoded and never shown.
    `broken_off`: the file ends inside the last one. `nominal_fps` is what the container states.
    """

    pts: Sequence[int]
    dts: Sequence[int]
    runs: Sequence[int]
    joins: Sequence[int]
    keys: Sequence[int]
    hidden: frozenset[int]
    broken_off: bool
    time_base: Fraction
    nominal_fps: float

    def __len__(self) -> int:
        return len(self.pts)

    def in_order(self, start: int) -> list[int]:
        """Packets from `start` that are to be shown, in the order that their times claim."""
        # Frames of one time are shown as they are stored.
        numbers = range(start, len(self))
        claimed = sorted(zip(self.runs[start:], self.pts[start:], numbers, strict=True))
        return [number for _, _, number in claimed if number not in self.hidden]

    @property
    def unsure(self) -> int:
        """How many packets at the front must be decoded to know which of them are shown, and when.

        Those before the second keyframe where the stream starts inside a group or with frames that
        lean on an earlier one: decoders show some of them. All, where a time is missing, or where
        such a stream was joined to another.
        """
        if UNKNOWN in self.pts:
            return len(self)
        if not all(map(self._starts_cleanly, self.joins)):
            return len(self)
        if self._starts_cleanly(0):
            return 0
        return self.keys[1] if len(self.keys) > 1 else len(self)

    def _starts_cleanly(self, start: int) -> bool:
        """Whether there is a keyframe at `start` and no frame after it is shown before it."""
        place = bisect_left(self.keys, start)
        if self.keys[place : place + 1] != [start]:
            return False
        end = self.keys[place + 1] if place + 1 < len(self.keys) else len(self)
        return all(
            self.pts[number] >= self.pts[start] or number in self.hidden
            for number in range(start, end)
        )

    def times(self, shown: Sequence[int]) -> list[int] | None:
        """When each of these packets is shown, rising; None where the container does not say.

        The i-th frame is shown at the i-th time, whichever packet carries it: AVI and ASF state
        times of decoding. Where times start over they go on from the last one.
        """
        stated = next((times for times in (self.pts, self.dts) if UNKNOWN not in times), None)
        if stated is None or not shown:
            return None
        step = 1
        if self.nominal_fps > 0:
            step = max(1, round(1 / (Fraction(self.nominal_fps) * self.time_base)))
        times: list[int] = []
        run, offset = self.runs[shown[0]], 0
        for in_run, time in sorted((self.runs[number], stated[number]) for number in shown):
            if in_run != run:
                run, offset = in_run, times[-1] + step - time
            times.append(time + offset)
        return times if times[-1] > times[0] or len(times) == 1 else None


def scan(container: Any, stream: Any, limits: MediaLimits) -> Packets:
    """Packets of one video stream of an open PyAV container; reads it to the end.

    A file that breaks off yields the packets before that point, possibly none. Raises
    MediaTooLargeError for more packets or bytes than a video needs: a container can list millions
    of packets, and list the same bytes many times.
    """
    pts, dts, runs = array("q"), array("q"), array("l")
    keys: list[int] = []
    hidden: set[int] = set()
    joins: list[int] = []
    total_bytes = 0
    is_vp8 = stream.codec_context.name == "vp8"
    broken_off = False
    for number, packet in packets_of(container, stream):
        check_packets(number + 1)
        total_bytes += packet.size
        if total_bytes > 2 * limits.max_bytes:
            raise MediaTooLargeError(
                f"the packets of the video are larger than the file: over {total_bytes} bytes; "
                f"this server reads at most {2 * limits.max_bytes}",
                "too_large",
            )
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        if packet.is_discard or (is_vp8 and not memoryview(packet)[0] & SHOWN_BY_VP8):
            hidden.add(number)
        if packet.is_keyframe:
            keys.append(number)
        if number and UNKNOWN < dts[number] < dts[number - 1]:
            joins.append(number)
        runs.append(len(joins))
        broken_off = packet.is_corrupt
    rate = stream.average_rate or stream.guessed_rate
    return Packets(
        pts=pts,
        dts=dts,
        runs=runs,
        joins=joins,
        keys=keys,
        hidden=frozenset(hidden),
        broken_off=broken_off,
        time_base=stream.time_base or Fraction(1),
        nominal_fps=float(rate) if rate else 0.0,
    )


def check_packets(number: int) -> None:
    """Raises MediaTooLargeError for more packets than a video can need."""
    if number > MAX_PACKETS:
        raise MediaTooLargeError(
            f"the video has over {MAX_PACKETS} packets, the most that this server reads",
            "too_many_packets",
        )


def packets_of(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(number, packet) of the stream to the readable end; the same numbers each time."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    number = 0
    try:
        for packet in container.demux(stream):
            # Empty ones repeat the frame before, or tell that the file has ended.
            if packet.size:
                yield number, packet
                number += 1
    except MemoryError:
        raise
    except (av.FFmpegError, OSError):
        return  # cut off: what was read so far is the video
    except IndexError:
        return  # read to the end; PyAV stumbles there over streams that began on the way
