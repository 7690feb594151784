"""Interlaced H.264 whose frames are two field pictures (PAFF), which no free encoder makes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av

SIDE, FRAMES, RATE = 32, 50, 25
DELIMITER = b"\0\0\0\1\x09\x10"


class Bits:
    """Bits of an H.264 unit, written one value after the other."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def u(self, value: int, count: int) -> Bits:
        """`count` bits of a value."""
        self._bits += [value >> place & 1 for place in range(count - 1, -1, -1)]
        return self

    def ue(self, *values: int) -> Bits:
        """Exp-Golomb codes."""
        for value in values:
            length = (value + 1).bit_length()
            self.u(0, length - 1).u(value + 1, length)
        return self

    def align(self) -> Bits:
        """Zeros up to the next byte."""
        return self.u(0, -len(self._bits) % 8)

    def unit(self, kind: int) -> bytes:
        """The unit in its bytes, with start code and without start codes inside."""
        self.u(1, 1).align()
        out, zeros = bytearray(), 0
        for start in range(0, len(self._bits), 8):
            byte = int("".join(map(str, self._bits[start : start + 8])), 2)
            if zeros >= 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([3 << 5 | kind]) + bytes(out)


def _sequence() -> bytes:
    """Main profile, frame_mbs_only_flag 0, picture order of 8 bits, 50 fields a second."""
    bits = Bits().u(77, 8).u(0, 8).u(30, 8).ue(0, 0, 0, 4, 1).u(0, 1)
    bits.ue(SIDE // 16 - 1, SIDE // 32 - 1).u(0, 1).u(0, 1).u(1, 1).u(0, 1)
    bits.u(1, 1).u(0, 4).u(1, 1).u(1, 32).u(2 * RATE, 32).u(1, 1).u(0, 4)
    return bits.unit(7)


def _parameters() -> bytes:
    return Bits().ue(0, 0).u(0, 2).ue(0, 0, 0).u(0, 3).ue(0, 0, 0).u(0, 3).unit(8)


def _field(number: int, bottom: int) -> bytes:
    """One field of frame `number`, every macroblock raw (I_PCM) and in one grey."""
    group, place = divmod(number, 10)
    idr = place == 0 and not bottom
    bits = Bits().ue(0, 7, 0).u(number % 16, 4).u(1, 1).u(bottom, 1)
    if idr:
        bits.ue(group % 2)
    bits.u((2 * number + bottom) % 256, 8).u(0, 2 if idr else 1).ue(0)
    grey = bytes([30 + 4 * number])
    for _ in range(SIDE // 16 * (SIDE // 32)):
        bits.ue(25).align()
        bits.u(int.from_bytes(grey * 256 + bytes([128]) * 128), 384 * 8)
    return bits.unit(5 if idr else 1)


def _pairs() -> Iterator[tuple[bytes, bytes]]:
    for number in range(FRAMES):
        head = _sequence() + _parameters() if number % 10 == 0 else b""
        yield DELIMITER + head + _field(number, 0), DELIMITER + _field(number, 1)


def clip(container: str, apart: bool) -> bytes:
    """50 frames of 100 fields, 25 a second; each field in a packet of its own, or both in one."""
    pairs = list(_pairs())
    raw = b"".join(top + bottom for top, bottom in pairs)
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(raw), format="h264") as source,
        av.open(file, "w", format=container) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, (top, bottom) in enumerate(pairs):
            parts = [top, bottom] if apart else [top + bottom]
            for place, part in enumerate(parts):
                packet = av.Packet(part)
                packet.stream, packet.time_base = stream, Fraction(1, 2 * RATE)
                packet.pts = packet.dts = 2 * number + place
                packet.duration = 2 // len(parts)
                packet.is_keyframe = number % 10 == 0 and place == 0
                output.mux(packet)
    return file.getvalue()
