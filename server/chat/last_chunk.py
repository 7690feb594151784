"""Fields added to the last chunk of a stream of server-sent events, without holding up the rest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

DATA = "data: "
DONE = "data: [DONE]"

T = TypeVar("T")


async def with_more_in_last_chunk(
    stream: AsyncGenerator[str, None],
    early: Callable[[], Coroutine[Any, Any, T]],
    more: Callable[[T], dict[str, Any]],
) -> AsyncGenerator[str, None]:
    """`stream`, with what `more` gives in the chunk before `[DONE]`; an error chunk stays as it is.

    `early` is asked beside the stream once its first item is there, `more` when all else has been
    sent, of what `early` gave: what takes long then does not hold up the end of an answer. Leaving
    early closes `stream` and ends `early`.
    """
    held: str | None = None
    asked: asyncio.Task[T] | None = None
    try:
        async for item in stream:
            if asked is None:
                asked = asyncio.create_task(early())
            if item.startswith(DONE) and held is not None:
                yield _extended(held, more(await asked))
                held = None
            elif held is not None:
                yield held
                held = None
            if item.startswith(DONE):
                yield item
            elif _may_be_last(item):
                held = item
            else:
                yield item
        if held is not None:
            yield held
    finally:
        if asked is not None:
            asked.cancel()
        await stream.aclose()


def _extended(item: str, fields: dict[str, Any]) -> str:
    chunk = {**json.loads(item.removeprefix(DATA)), **fields}
    return f"{DATA}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _may_be_last(item: str) -> bool:
    """Whether a stream item can be the last before `[DONE]`: it ends a choice or carries usage.

    Only such items are held back, so tokens are passed on the moment they exist. Quotes inside
    JSON strings are escaped, so an answer cannot contain these marks.
    """
    return item.startswith("data: {") and ('"finish_reason":"' in item or '"choices":[]' in item)
