"""What a server answers `metok chat`: a stream of JSON objects, or an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from metok_vllm.console import CommandError


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to [DONE]."""
    for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise CommandError("the server sent a chunk that is not JSON") from error
        if chunk.get("error"):
            raise CommandError(f"the server ended the stream with an error: {_message(chunk)}")
        yield chunk
    raise CommandError("the answer is incomplete: the server closed the stream before its end")


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Lines of the stream, split at newlines only: JSON may contain other line separators."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


def raise_for_error(response: httpx.Response) -> None:
    """Raise CommandError with the message of an answer that is not 200."""
    if response.status_code == 200:
        return
    try:
        message = _message(response.json())
    except ValueError:
        message = response.reason_phrase
    raise CommandError(f"the server answered {response.status_code}: {message}")


def _message(envelope: Any) -> str:
    error = envelope.get("error", envelope) if isinstance(envelope, dict) else envelope
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no reason given")
