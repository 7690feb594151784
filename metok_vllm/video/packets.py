"""The packets of a video stream as the container describes them, read without decoding."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from metok_vllm.errors import MediaTooLargeError

# 4 hours at 30 frames a second have 432,000 frames.
MAX_PACKETS = 500_000
# Bit in the first byte of a VP8 packet; unset for frames that are only references (altref).
SHOWN_BY_VP8 = 0x10
# A time that the container does not state.
UNKNOWN = -(1 << 63)


@dataclass(frozen=True)
class Packets:
    """The packets of one stream, numbered in the order in which they are stored and decoded.

    `pts` and `dts` are in units of `time_base`. Times restart at the `joins` of recordings; `runs`
    counts the joins up to each packet. `hidden` packets are decoded and never shown. `broken_off`:
    the file ends inside the last packet. `nominal_fps` is the rate that the container states.
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
        """Shown packets from `start` on, in the order of their stated times."""
        # Packets of equal time keep their stored order.
        numbers = range(start, len(self))
        claimed = sorted(zip(self.runs[start:], self.pts[start:], numbers, strict=True))
        return [number for _, _, number in claimed if number not in self.hidden]

    @property
    def unsure(self) -> int:
        """How many packets at the front must be decoded to find which of them are shown, and when.

        All before the second keyframe, where the stream starts inside a group or with frames that
        reference an earlier group: decoders show some of those. All packets where a time is
        missing, or where a joined recording starts so.
        """
        if UNKNOWN in self.pts:
            return len(self)
        if not all(map(self._starts_cleanly, self.joins)):
            return len(self)
        if self._starts_cleanly(0):
            return 0
        return self.keys[1] if len(self.keys) > 1 else len(self)

    def _starts_cleanly(self, start: int) -> bool:
        """Whether `start` is a keyframe and no later frame of its group is shown before it."""
        place = bisect_left(self.keys, start)
        if self.keys[place : place + 1] != [start]:
            return False
        end = self.keys[place + 1] if place + 1 < len(self.keys) else len(self)
        return all(
            self.pts[number] >= self.pts[start] or number in self.hidden
            for number in range(start, end)
        )

    def times(self, shown: Sequence[int]) -> list[int] | None:
        """When each of these packets is shown, rising; None where the container does not state it.

        The i-th frame is shown at the i-th time, whichever packet carries that time: AVI and ASF
        state decoding times. Where times restart, they continue from the last one.
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


def scan(container: Any, stream: Any, max_bytes: int) -> Packets:
    """Packets of one video stream of an open PyAV container; reads it to the end.

    A file that breaks off yields the packets before that point, possibly none. Raises
    MediaTooLargeError for more packets or bytes than a video of `max_bytes` needs: a container can
    list millions of packets, and list the same bytes many times.
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
        if total_bytes > 2 * max_bytes:
            raise MediaTooLargeError(
                f"the packets of the video are larger than the file: over {total_bytes} bytes; "
                f"this server reads at most {2 * max_bytes}",
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
    """Raise MediaTooLargeError for more packets than a video needs."""
    if number > MAX_PACKETS:
        raise MediaTooLargeError(
            f"the video has over {MAX_PACKETS} packets, the most that this server reads",
            "too_many_packets",
        )


def packets_of(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    """(number, packet) of the stream to its readable end; the numbers are the same in each pass."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    number = 0
    try:
        for packet in container.demux(stream):
            # Empty packets repeat the frame before, or mark the end of the file.
            if packet.size:
                yield number, packet
                number += 1
    except MemoryError:
        raise
    except (av.FFmpegError, OSError):
        return  # truncated: the packets so far are the video
    except IndexError:
        return  # PyAV raises this at the end of files whose streams start late
