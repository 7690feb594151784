"""Fields added to the last chunk of a stream of server-sent events, without delaying its tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

DATA = "data: "
DONE = "data: [DONE]"

T = TypeVar("T")


async def extend_last_chunk(
    stream: AsyncGenerator[str, None],
    fetch: Callable[[], Coroutine[Any, Any, T]],
    fields_of: Callable[[T], dict[str, Any]],
) -> AsyncGenerator[str, None]:
    """`stream` with `fields_of(await fetch())` added to the chunk before `[DONE]`.

    `fetch` starts at the first item and runs while the stream is read, so it does not delay the
    end. An error chunk is not extended. Closing the generator closes `stream` and cancels `fetch`.
    """
    held: str | None = None
    fetching: asyncio.Task[T] | None = None
    try:
        async for item in stream:
            if fetching is None:
                fetching = asyncio.create_task(fetch())
            if held is not None:
                is_last = item.startswith(DONE)
                yield _extended(held, fields_of(await fetching)) if is_last else held
                held = None
            if _may_be_last(item):
                held = item
            else:
                yield item
        if held is not None:
            yield held
    finally:
        if fetching is not None:
            fetching.cancel()
        await stream.aclose()


def _extended(item: str, fields: dict[str, Any]) -> str:
    chunk = {**json.loads(item.removeprefix(DATA)), **fields}
    return f"{DATA}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _may_be_last(item: str) -> bool:
    """Whether an item can be the last before `[DONE]`: it finishes a choice or carries usage.

    Only such items are held back; all others pass at once. Quotes inside JSON strings are escaped,
    so the text of an answer cannot match.
    """
    return item.startswith("data: {") and ('"finish_reason":"' in item or '"choices":[]' in item)
