"""Outcomes made by hand, for tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metok_vllm.benchmarks.client.endpoint import Kind
from metok_vllm.benchmarks.client.stream import Outcome


def outcome(
    key: str = "a",
    started_s: float = 0.0,
    times_s: Sequence[float] = (1.0, 1.5, 2.0),
    *,
    ended_s: float | None = None,
    kind: Kind = "video",
    question: int = 0,
    error: str | None = None,
    text: str = "one two three",
    first_piece: str = "one",
    token_ids: tuple[int, ...] | None = None,
    completion_tokens: int | None = None,
    metok: dict[str, Any] | None = None,
) -> Outcome:
    """An answer whose tokens came at `times_s`; a failed request where `error` says so."""
    ended_s = ended_s if ended_s is not None else (times_s[-1] if times_s else started_s)
    return Outcome(
        key=key,
        kind=kind,
        frames=8,
        video_seconds=4.0,
        question=question,
        started_s=started_s,
        first_token_s=times_s[0] if times_s else None,
        token_times_s=tuple(times_s),
        ended_s=ended_s,
        prompt_tokens=100,
        completion_tokens=len(times_s) if completion_tokens is None else completion_tokens,
        error=error,
        text=text,
        first_piece=first_piece,
        token_ids=token_ids,
        metok=metok,
    )
