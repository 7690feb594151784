"""The boxes of an mp4 file, checked before FFmpeg builds its sample tables from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from metok_vllm.errors import MediaTooLargeError
from metok_vllm.video.packets import check_packets

NESTED = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
# 4 hours in fragments of 2 s of picture and sound need about 120,000.
MAX_BOXES = 200_000
MAX_DEPTH = len(NESTED)
# Depth of hdlr in moov, trak, mdia; QuickTime has another hdlr deeper.
MEDIA_DEPTH = 3


@dataclass(frozen=True)
class Box:
    """One box; `depth` counts the boxes around it. Its content lies from `start` to `end`."""

    kind: bytes
    depth: int
    start: int
    end: int


def boxes(file: BinaryIO, size: int) -> Iterator[Box]:
    """Boxes of the file's `size` bytes in the order of their starts; none if it is no mp4.

    Raises MediaTooLargeError for more boxes than a video needs.
    """
    ends = [size]
    place = count = 0
    while True:
        while ends and place + 8 > ends[-1]:
            place = ends.pop()
        if not ends:
            return
        file.seek(place)
        head = file.read(16)
        length, start = int.from_bytes(head[:4]), place + 8
        if length == 1:
            length, start = int.from_bytes(head[8:]), place + 16
        end = min(place + length, ends[-1]) if length else ends[-1]
        if end < start or not head[4:8].isascii():
            return
        count += 1
        if count > MAX_BOXES:
            raise MediaTooLargeError(
                f"the mp4 file has over {MAX_BOXES} boxes, the most that this server reads",
                "too_many_packets",
            )
        box = Box(head[4:8], len(ends) - 1, start, end)
        yield box
        if box.kind in NESTED and box.depth < MAX_DEPTH:
            ends.append(end)
            place = start
        else:
            place = end


def check_tables(file: BinaryIO, size: int) -> None:
    """Raise MediaTooLargeError where the tables list more samples than a video needs.

    A few bytes can list billions, and FFmpeg builds an entry for each when it opens the file. Sound
    of one tick a sample (PCM) is not counted: FFmpeg builds one entry for a whole chunk of it.
    """
    samples = in_fragments = 0
    sound = one_tick = False
    for box in boxes(file, size):
        if box.kind == b"trak":
            check_packets(0 if sound and one_tick else samples)
            samples, sound, one_tick = 0, False, False
        elif box.kind == b"hdlr" and box.depth == MEDIA_DEPTH:
            sound = _word(file, box, 8) == int.from_bytes(b"soun")
        elif box.kind == b"stts":
            one_tick = _word(file, box, 4) == 1 and _word(file, box, 12) == 1
        elif box.kind in (b"stsz", b"stz2"):
            samples = max(samples, _word(file, box, 8))
        elif box.kind == b"trun":
            in_fragments += _word(file, box, 4)
            check_packets(in_fragments)
    check_packets(0 if sound and one_tick else samples)


def is_fragmented(file: BinaryIO, size: int) -> bool:
    """Whether the file is an mp4 with a movie fragment (moof)."""
    return any(box.kind == b"moof" for box in boxes(file, size))


def _word(file: BinaryIO, box: Box, offset: int) -> int:
    """Four bytes of a box's content as a big-endian number."""
    file.seek(box.start + offset)
    return int.from_bytes(file.read(4))
