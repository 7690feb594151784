"""Internal URLs with which the chat endpoint tells the media connector how to read a part.

vLLM passes a part's URL, and nothing else of the part, to the connector. Clients cannot guess such
a URL.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

# Clients do not have this, so only this process can make such a URL.
_SECRET = secrets.token_hex(16)
_FRAMES, _SAMPLE = f"metok-frames:{_SECRET}:", f"metok-sample:{_SECRET}:"
# No URL holds it, so it separates URLs of any length without a parser.
_SEPARATOR = "\0"


def frames_url(urls: Sequence[str]) -> str:
    """An internal URL of a video whose frames are the images at `urls`."""
    return _FRAMES + _SEPARATOR.join(urls)


def is_frames_url(url: str) -> bool:
    """Whether a URL is one of `frames_url`."""
    return url.startswith(_FRAMES)


def split_frames(url: str) -> list[str]:
    """The URLs of the images behind a `frames_url`."""
    return url.removeprefix(_FRAMES).split(_SEPARATOR)


def sample_url(options: dict[str, Any], url: str) -> str:
    """An internal URL that samples the video at `url` with its own `num_frames` or `fps`."""
    return f"{_SAMPLE}{json.dumps(options)}{_SEPARATOR}{url}"


def split_sample(url: str) -> tuple[dict[str, Any], str]:
    """The options of a `sample_url`, empty for any other URL, and the URL to read."""
    if not url.startswith(_SAMPLE):
        return {}, url
    options, _, inner = url.removeprefix(_SAMPLE).partition(_SEPARATOR)
    return json.loads(options), inner
