"""A small experiment on two servers with known delays, and outcomes made by hand."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rich.console import Console

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint, Kind
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.questions.bootstrap import Estimate
from metok_vllm.benchmarks.throughput.accuracy import Quality
from metok_vllm.benchmarks.throughput.measures import Measures
from metok_vllm.benchmarks.throughput.run import Cell, Sweep, experiment
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, request


@dataclass
class Watcher:
    """Records the calls of a `run.Watch`."""

    begun: list[tuple[str, int]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    ended: list[Measures | None] = field(default_factory=list)

    def begin(self, title: str, requests: int) -> None:
        self.begun.append((title, requests))

    def outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def end(self, measures: Measures | None) -> None:
        self.ended.append(measures)


def stream(frames: int) -> Iterator[BenchRequest]:
    """Endless requests whose keys contain the frames."""
    return (request(f"{frames}-{number}") for number in count())


def run_pair(
    plain: KnownServer,
    other: KnownServer,
    sweep: Sweep,
    watcher: Watcher | None = None,
) -> tuple[list[Cell], list[Endpoint]]:
    """The cells of `sweep` on both servers."""
    with known_server(plain, "plain") as one, known_server(other, "metok") as two:
        cells = experiment([one, two], sweep, stream, watcher or Watcher())
        return asyncio.run(_all(cells)), [one, two]


async def _all(cells: AsyncIterator[Cell]) -> list[Cell]:
    return [cell async for cell in cells]


def shown(*things: Any) -> str:
    """The output of a wide terminal."""
    console = Console(width=200, file=io.StringIO())
    for thing in things:
        console.print(thing)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def outcome(
    key: str = "a",
    started_s: float = 0.0,
    times_s: Sequence[float] = (1.0, 1.5, 2.0),
    *,
    ended_s: float | None = None,
    kind: Kind = "video",
    question: int = 0,
    turn: int = 0,
    cached_tokens: int | None = None,
    error: str | None = None,
    text: str = "one two three",
    first_piece: str = "one",
    token_ids: tuple[int, ...] | None = None,
    completion_tokens: int | None = None,
    metok: dict[str, Any] | None = None,
) -> Outcome:
    """An answer with tokens at `times_s`, or a failed request with an `error`."""
    ended_s = ended_s if ended_s is not None else (times_s[-1] if times_s else started_s)
    return Outcome(
        key=key,
        kind=kind,
        frames=8,
        video_seconds=4.0,
        question=question,
        turn=turn,
        started_s=started_s,
        first_token_s=times_s[0] if times_s else None,
        token_times_s=tuple(times_s),
        ended_s=ended_s,
        prompt_tokens=100,
        cached_tokens=cached_tokens,
        completion_tokens=len(times_s) if completion_tokens is None else completion_tokens,
        error=error,
        text=text,
        content=text,
        first_piece=first_piece,
        token_ids=token_ids,
        metok=metok,
    )


def quality_at(frames: int, failed: int = 0) -> Quality:
    """The accuracy of two servers on 32 questions."""
    return Quality(
        source="event-QA",
        frames=frames,
        digest="questions",
        videos=4,
        questions=32,
        chance=0.15,
        failed={"plain": 0, "metok": failed},
        accuracy={
            "plain": Estimate(0.9375, 0.84375, 1.0),
            "metok": Estimate(0.875, 0.75, 0.96875),
        },
        difference=Estimate(-0.0625, -0.125, 0.0),
        agreement=None,
    )
