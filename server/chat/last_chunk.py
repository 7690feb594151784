"""A report added to the last chunks of a stream of server-sent events, without delaying tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

DATA = "data: "
DONE = "data: [DONE]"

T = TypeVar("T")


async def extend_last_chunks(
    stream: AsyncGenerator[str, None],
    field: str,
    fetch: Callable[[], Coroutine[Any, Any, T]],
    report_of: Callable[[T], dict[str, Any]],
) -> AsyncGenerator[str, None]:
    """`stream` with `report_of(await fetch())` as `field` where clients may look for it.

    That is the chunk before `[DONE]`, and the first choice in the chunk that finishes it, which
    some client libraries keep where they drop the former. `fetch` starts at the first item and
    runs while the stream is read, so it does not delay the end. An error chunk is not extended.
    Closing the generator closes `stream` and cancels `fetch`.
    """
    held: str | None = None
    fetching: asyncio.Task[T] | None = None
    report: dict[str, Any] | None = None
    try:
        async for item in stream:
            if fetching is None:
                fetching = asyncio.create_task(fetch())
            if held is not None:
                chunk = json.loads(held.removeprefix(DATA))
                finished = next((c for c in chunk["choices"] if _is_first_finished(c)), None)
                places = [finished] if finished is not None else []
                places += [chunk] if item.startswith(DONE) else []
                if places and report is None:
                    report = report_of(await fetching)
                for place in places:
                    place[field] = report
                yield _event(chunk) if places else held
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


def _event(chunk: dict[str, Any]) -> str:
    return f"{DATA}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _is_first_finished(choice: dict[str, Any]) -> bool:
    return choice.get("index") == 0 and choice.get("finish_reason") is not None


def _may_be_last(item: str) -> bool:
    """Whether an item can be the last before `[DONE]`: it finishes a choice or carries usage.

    Only such items are held back; all others pass at once. Quotes inside JSON strings are escaped,
    so the text of an answer cannot match.
    """
    return item.startswith("data: {") and ('"finish_reason":"' in item or '"choices":[]' in item)
