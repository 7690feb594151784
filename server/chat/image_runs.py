"""Runs of images in a message: clients that send a video as one `image_url` part per frame.

METok compresses videos only, so such a run costs a client all its tokens, and a model that was
trained on videos answers worse. A server may read runs as videos instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from metok_vllm.server.chat.messages import content_parts
from metok_vllm.server.media.part_urls import frames_url

# Runs from this length on are reported as likely frames of a video.
SUSPECT_RUN = 4


def longest_run(messages: list[Any]) -> int:
    """Images in the longest run of consecutive image parts of one checked message."""
    return max((len(run) for message in messages for run in _runs(message)), default=0)


def no_video_reason(longest_run: int) -> str:
    """Why METok does nothing for a request without a video, for its `metok` object."""
    reason = "no video in the request"
    if longest_run >= SUSPECT_RUN:
        reason += (
            f"; its {longest_run} images in a row are not compressed: send them as one video_url, "
            "or start the server with --metok-image-runs-as-video"
        )
    return reason


def fold_runs(messages: list[Any], least: int) -> list[Any]:
    """Messages in which every run of `least` or more images is one video part.

    `messages` are as `checked_messages` returns them.
    """
    return [_folded(message, least) for message in messages]


def _folded(message: Any, least: int) -> Any:
    if not any(len(run) >= least for run in _runs(message)):
        return message
    parts: list[Any] = []
    for is_run, group in groupby(content_parts(message), _is_image):
        run = list(group)
        if is_run and len(run) >= least:
            url = frames_url([part["image_url"]["url"] for part in run])
            run = [{"type": "video_url", "video_url": {"url": url}}]
        parts += run
    return {**message, "content": parts}


def _runs(message: Any) -> Iterator[list[Any]]:
    for is_run, group in groupby(content_parts(message), _is_image):
        if is_run:
            yield list(group)


def _is_image(part: Any) -> bool:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return False
    image = part.get("image_url")
    return isinstance(image, Mapping) and isinstance(image.get("url"), str)
