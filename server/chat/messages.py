"""What METok reads from the messages of a chat request: its videos and the question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metok_vllm.models.query import PROMPT_TEXT, USER_TURN

# Instructions of whoever built the client: the only place left where a question can stand.
INSTRUCTION_ROLES = frozenset({"system", "developer"})


def count_videos(messages: Any) -> int:
    """Video parts in the messages of a request."""
    count = 0
    for message in messages:
        for part in _parts(message):
            if isinstance(part, Mapping):
                kind = part.get("type")
                count += kind == "video_url" or (kind is None and "video_url" in part)
    return count


def question_of(messages: Any) -> tuple[str, str]:
    """The question and where it stands, as QueryFinder names places; ("", "") if there is none.

    A turn of the user may be several messages: a caption and a film, or a question and what an
    agent adds behind it. So all texts since the last answer count. Where the user wrote nothing
    there, an earlier turn does, and last the instructions.
    """
    turns = _user_turns(list(messages))
    for turn in reversed(turns):
        if text := _joined(turn):
            return text, USER_TURN
    instructions = [message for message in messages if _role(message) in INSTRUCTION_ROLES]
    text = _joined(instructions)
    return (text, PROMPT_TEXT) if text else ("", "")


def _user_turns(messages: Sequence[Any]) -> list[list[Any]]:
    """Messages of the user between two answers, in order; results of tools end no turn."""
    turns: list[list[Any]] = [[]]
    for message in messages:
        role = _role(message)
        if role == "assistant":
            turns.append([])
        elif role == "user":
            turns[-1].append(message)
    return turns


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _joined(messages: Sequence[Any]) -> str:
    texts = ("\n".join(_texts(message)).strip() for message in messages)
    return "\n".join(text for text in texts if text)


def _texts(message: Any) -> Iterator[str]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        yield content
    for part in _parts(message):
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str) and part.get("type") == "text":
            yield text


def _parts(message: Any) -> list[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list) else []
