"""Calls to the workers of every engine behind this server."""

from __future__ import annotations

from typing import Any


async def ask_workers(engine_client: Any, method: str, *args: Any) -> list[list[Any]]:
    """What the workers answer to `method`: for each engine, one answer per worker.

    vLLM's `collective_rpc` asks every engine and passes on the answers of the first one alone
    (v1/engine/core_client.py, DPLBAsyncMPClient). A time limit is the caller's business: one inside
    the engine would leave answers behind that the next call takes for its own.
    """
    core = engine_client.engine_core
    answers: list[list[Any]]
    answers = await core.call_utility_all_async("collective_rpc", method, None, args, None)
    return answers
