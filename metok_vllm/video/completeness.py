"""Whether all bytes of a video are there."""

from __future__ import annotations

from io import SEEK_END
from typing import Any, BinaryIO

from metok_vllm.errors import MediaError
from metok_vllm.video.mp4_boxes import is_fragmented


def check_complete(stream: Any, file: BinaryIO) -> None:
    """MediaError(truncated) where the container's own index names bytes beyond the file's end.

    A fragmented mp4 is a stream that may end anywhere: what is there of it counts.
    """
    present = file.seek(0, SEEK_END)
    named = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if named > present and not is_fragmented(file, present):
        raise MediaError(
            f"the video is cut off: {present} of at least {named} bytes are there", "truncated"
        )
