"""Fields added to the last chunk of a stream of server-sent events, without holding up the rest."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

DATA = "data: "
DONE = "data: [DONE]"


async def with_more_in_last_chunk(
    stream: AsyncGenerator[str, None], more: Callable[[], Awaitable[dict[str, Any]]]
) -> AsyncGenerator[str, None]:
    """`stream`, with what `more` gives in the chunk before `[DONE]`; an error chunk stays as it is.

    `more` is asked when all else has been sent. Leaving early closes `stream`.
    """
    held: str | None = None
    try:
        async for item in stream:
            if item.startswith(DONE) and held is not None:
                yield _extended(held, await more())
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
