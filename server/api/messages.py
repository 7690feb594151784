"""What METok reads from the messages of a chat request: its videos and the user's last words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def count_videos(messages: Any) -> int:
    """Video parts in the messages of a request."""
    count = 0
    for message in messages:
        for part in _parts(message):
            if isinstance(part, Mapping):
                kind = part.get("type")
                count += kind == "video_url" or (kind is None and "video_url" in part)
    return count


def last_user_text(messages: Any) -> str:
    """The text of the last message of the user, its parts on lines of their own; "" if none."""
    for message in reversed(list(messages)):
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            texts = [content] if isinstance(content, str) else _texts(message)
            return "\n".join(texts).strip()
    return ""


def _texts(message: Any) -> Iterator[str]:
    for part in _parts(message):
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str) and part.get("type") == "text":
            yield text


def _parts(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else []
