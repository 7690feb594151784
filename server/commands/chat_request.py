"""The request body of `metok chat`: JSON that is encoded in chunks, for videos of any size."""

from __future__ import annotations

import argparse
import base64
import json
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metok_vllm.console import CommandError

READ_BYTES = 3 << 15  # a multiple of three, so that no chunk but the last has base64 padding
_PLACEHOLDER = "metok-video-goes-here"


class RequestBody:
    """The chat request as an iterable of JSON bytes; `len` is their number.

    `questions` are the user's so far, `answers` the server's to all but the last one. Raises
    CommandError (status 2) if the video file does not exist.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.model = ""
        self.questions: list[str] = []
        self.answers: list[str] = []
        video = arguments.video
        self.path = None if video.startswith(("http://", "https://")) else Path(video)
        if self.path is not None and not self.path.is_file():
            raise CommandError(f"no such video file: {video}", 2)

    def _around(self) -> tuple[bytes, bytes]:
        a = self._arguments
        video = {"type": "video_url", "video_url": {"url": a.video if not self.path else ""}}
        if self.path:
            kind = mimetypes.guess_type(self.path.name)[0] or ""
            kind = kind if kind.startswith("video/") else "video/mp4"
            video["video_url"] = {"url": f"data:{kind};base64,{_PLACEHOLDER}"}
        request: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "model": self.model,
            "max_tokens": a.max_tokens,
            "temperature": a.temperature,
        }
        settings = {"preset": a.preset, "num_events": a.num_events, "focus": a.focus}
        metok = {name: value for name, value in settings.items() if value is not None}
        if a.no_metok:
            metok = {"enabled": False}
        if metok:
            request["metok"] = metok
        if a.frames is not None:
            request["media_io_kwargs"] = {"video": {"num_frames": a.frames}}
        # The video comes first, because the question may contain the placeholder too.
        first, *later = self.questions
        messages: list[dict[str, Any]]
        messages = [{"role": "user", "content": [video, {"type": "text", "text": first}]}]
        for answer, question in zip(self.answers, later, strict=True):
            messages.append({"role": "assistant", "content": answer})
            messages.append({"role": "user", "content": question})
        request = {"messages": messages, **request}
        before, _, after = json.dumps(request).partition(_PLACEHOLDER)
        return before.encode(), after.encode()

    def __len__(self) -> int:
        before, after = self._around()
        size = self.path.stat().st_size if self.path else 0
        return len(before) + -(-size // 3) * 4 + len(after)

    def __iter__(self) -> Iterator[bytes]:
        before, after = self._around()
        yield before
        if self.path:
            with self.path.open("rb") as file:
                while piece := file.read(READ_BYTES):
                    yield base64.b64encode(piece)
        yield after
