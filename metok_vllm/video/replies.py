"""Checks of a decode worker's replies, because a hostile file may have compromised the worker.

Every deviation from the protocol raises ChannelClosedError, which ends the worker.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import fields
from itertools import pairwise
from typing import Any, BinaryIO

from metok_vllm.errors import (
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
)
from metok_vllm.video.channel import ChannelClosedError
from metok_vllm.video.frames import Decoded

ERRORS = {
    kind.__name__: kind
    for kind in (MediaError, MediaTooLargeError, MediaForbiddenError, MediaDeadlineError)
}
MAX_TEXT = 500
# Reasons are label values of a metric, so their number is bounded.
REASON = re.compile(r"[a-z]{1,12}(_[a-z]{1,12}){0,3}")
MAX_REASONS = 64
MAX_SIDE = 1 << 20
# JSON of one frame's index and time, and of the rest of a reply.
BYTES_A_FRAME, BYTES_BESIDES = 64, 64 << 10

_reasons: set[str] = set()


def max_reply_bytes(num_frames: int) -> int:
    """The most bytes that a valid reply about `num_frames` frames has."""
    return BYTES_BESIDES + num_frames * BYTES_A_FRAME


def decoded_of(reply: dict[str, Any], file: BinaryIO | None, num_frames: int) -> Decoded:
    """The report of a reply, of at most `num_frames` frames. Raises the MediaError it reports."""
    if file is None:
        raise _error(reply.get("error"))
    report = reply.get("decoded")
    _demand(isinstance(report, dict) and report.keys() == {field.name for field in fields(Decoded)})
    assert isinstance(report, dict)
    shape, indices, times = report["shape"], report["indices"], report["timestamps_s"]
    _demand(isinstance(shape, list) and len(shape) == 4 and shape[3] == 3)
    _demand(all(_is_count(side, MAX_SIDE) and side > 0 for side in shape))
    _demand(shape[0] <= num_frames)
    _demand(isinstance(indices, list) and isinstance(times, list))
    _demand(len(indices) == len(times) == shape[0])
    _demand(all(_is_count(index) for index in indices) and _rises(indices, strictly=True))
    _demand(all(_is_number(time) for time in times) and _rises(times))
    _demand(_is_count(report["total_frames"]) and _is_count(report["downscale"], MAX_SIDE))
    _demand(all(_is_number(report[name]) for name in ("fps", "duration_s", "decode_s")))
    _demand(isinstance(report["backend"], str) and len(report["backend"]) <= 32)
    _demand(os.fstat(file.fileno()).st_size == math.prod(shape))
    return Decoded(**{**report, "shape": tuple(shape)})


def _error(error: Any) -> MediaError:
    _demand(isinstance(error, dict) and error.keys() == {"type", "message", "reason"})
    _demand(all(isinstance(text, str) for text in error.values()))
    _demand(error["type"] in ERRORS and REASON.fullmatch(error["reason"]) is not None)
    reason = error["reason"]
    if len(_reasons) < MAX_REASONS:
        _reasons.add(reason)
    if reason not in _reasons:
        reason = "decode_failed"
    return ERRORS[error["type"]](error["message"][:MAX_TEXT], reason)


def _is_count(value: Any, most: int = 1 << 53) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: Any) -> bool:
    if type(value) is int:
        return abs(value) <= 1 << 53
    return type(value) is float and math.isfinite(value)


def _rises(values: list[Any], strictly: bool = False) -> bool:
    return all(a < b if strictly else a <= b for a, b in pairwise(values))


def _demand(condition: bool) -> None:
    if not condition:
        raise ChannelClosedError
