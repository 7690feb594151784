"""Tokens of a video by stage, and how eviction gives back whole KV blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class VideoCounts:
    """Tokens of one video by stage: run on in the prefill, and cached for decoding.

    Each of them counts the video's `separators`.
    """

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    separators: int = 0


def in_whole_blocks(videos: Sequence[VideoCounts], block_size: int) -> list[VideoCounts]:
    """The same with more tokens held for decoding, so that every stage gives whole blocks back.

    What is more than whole blocks stays with the first videos that give something back.
    """
    decode = [list(video.decode) for video in videos]
    for stage in range(len(videos[0].prefill)):
        given = [video.prefill[stage] - video.decode[stage] for video in videos]
        surplus = sum(given) % block_size
        for held, count in zip(decode, given, strict=True):
            more = min(surplus, count)
            held[stage] += more
            surplus -= more
    return [replace(video, decode=tuple(held)) for video, held in zip(videos, decode, strict=True)]
