"""Whether all bytes of a video are there."""

from __future__ import annotations

from io import SEEK_END
from typing import Any, BinaryIO

from metok_vllm.errors import MediaError

# Files have few boxes before their first fragment.
MAX_BOXES = 1000


def check_complete(stream: Any, file: BinaryIO) -> None:
    """MediaError(truncated) where the container's own index names bytes beyond the file's end.

    A fragmented mp4 is a stream that may end anywhere: what is there of it counts.
    """
    present = file.seek(0, SEEK_END)
    named = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if named > present and not _is_fragmented(file):
        raise MediaError(
            f"the video is cut off: {present} of at least {named} bytes are there", "truncated"
        )


def _is_fragmented(file: BinaryIO) -> bool:
    """Whether the file is an mp4 with a movie fragment (moof) among its outermost boxes."""
    place = 0
    for _ in range(MAX_BOXES):
        file.seek(place)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if kind == b"moof":
            return True
        if size == 1:
            size = int.from_bytes(head[8:])
        if len(head) < 8 or size < 8:
            return False
        place += size
        if place >= 1 << 62:
            return False
    return False
