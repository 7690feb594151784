"""What a container says of the packets of a video stream, read without decoding any."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from metok_vllm.errors import MediaTooLarge
from metok_vllm.video.limits import MediaLimits

# The longest video at the highest rate of a camera has 144,000 frames (600 s at 240 a second).
MAX_PACKETS = 500_000
# A time that the container does not state.
UNKNOWN = -(1 << 63)


@dataclass(frozen=True)
class Packets:
    """The packets of one stream, numbered in the order in which they are stored and decoded.

    `pts` and `dts` are in units of `time_base`. `runs` counts how often times started over before
    the packet, as in joined recordings. `hidden` packets are decoded and never shown. `broken_off`:
    the file ends inside the last one. `nominal_fps` is the rate that the container states.
    """

    pts: Sequence[int]
    dts: Sequence[int]
    runs: Sequence[int]
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

        All, where a time is missing. Those before the second keyframe where the stream starts
        inside a group or with frames that lean on an earlier one: decoders show some of them.
        """
        if UNKNOWN in self.pts:
            return len(self)
        first = self.keys[0] if self.keys else len(self)
        second = self.keys[1] if len(self.keys) > 1 else len(self)
        leading = any(
            self.pts[number] < self.pts[first]
            for number in range(first + 1, second)
            if number not in self.hidden
        )
        return second if first > 0 or leading else 0

    def times(self, shown: Sequence[int]) -> list[int] | None:
        """When each of these packets is shown, rising; None where the container does not say.

        The i-th frame is shown at the i-th time, whichever packet carries it: AVI and ASF state
        times of decoding. Where times start over they go on from the last one.
        """
        stated = next((times for times in (self.pts, self.dts) if UNKNOWN not in times), None)
        if stated is None or not shown:
            return None
        step = round(1 / (Fraction(self.nominal_fps) * self.time_base)) if self.nominal_fps else 1
        times: list[int] = []
        run, offset = self.runs[shown[0]], 0
        for in_run, time in sorted((self.runs[number], stated[number]) for number in shown):
            if in_run != run:
                run, offset = in_run, times[-1] + step - time
            times.append(time + offset)
        return times if times[-1] > times[0] or len(times) == 1 else None


def scan(container: Any, stream: Any, limits: MediaLimits) -> Packets:
    """Packets of one video stream of an open PyAV container; reads it to the end.

    A file that breaks off yields those up to there, possibly none. Raises MediaTooLarge for more
    than a video can need: containers can name millions, and one piece of the file many times.
    """
    pts, dts, runs = array("q"), array("q"), array("l")
    keys: list[int] = []
    hidden: set[int] = set()
    total_bytes = run = 0
    broken_off = False
    for number, packet in packets_of(container, stream):
        check_packets(number + 1)
        total_bytes += packet.size
        if total_bytes > 2 * limits.max_bytes:
            raise MediaTooLarge(
                f"the packets of the video are larger than the file: over {total_bytes} bytes; "
                f"this server reads at most {2 * limits.max_bytes}",
                "too_large",
            )
        time = UNKNOWN if packet.pts is None else packet.pts
        pts.append(time)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        if packet.is_discard or _is_invisible(stream, packet):
            hidden.add(number)
        if packet.is_keyframe:
            if keys and UNKNOWN not in (time, pts[keys[-1]]) and time < pts[keys[-1]]:
                run += 1
            keys.append(number)
        runs.append(run)
        broken_off = packet.is_corrupt
    rate = stream.average_rate or stream.guessed_rate
    return Packets(
        pts=pts,
        dts=dts,
        runs=runs,
        keys=keys,
        hidden=frozenset(hidden),
        broken_off=broken_off,
        time_base=stream.time_base or Fraction(1),
        nominal_fps=float(rate) if rate else 0.0,
    )


def check_packets(number: int) -> None:
    """Raises MediaTooLarge for more packets than a video can need."""
    if number > MAX_PACKETS:
        raise MediaTooLarge(
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


def _is_invisible(stream: Any, packet: Any) -> bool:
    """Whether a VP8 packet holds a frame that others lean on and that is not shown (altref)."""
    return stream.codec_context.name == "vp8" and not memoryview(packet)[0] & 0x10
