"""A request of the benchmark: a chat completion and what is known about it beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["video", "image", "text"]


@dataclass(frozen=True)
class BenchRequest:
    """One chat completion to send; plain vLLM and METok get the same bytes.

    `body` is the JSON of `/v1/chat/completions` without `stream`; it has `max_tokens`, `ignore_eos`
    and `temperature` 0. `frames` are the frames the model looks at and `video_seconds` the length
    of the video, both 0 for image and text requests. `key` names it: equal keys, equal bytes.
    `question` counts the questions about the same video before this one.
    """

    key: str
    kind: Kind
    body: dict[str, Any]
    frames: int
    video_seconds: float
    question: int = 0
