"""A small experiment on two servers with known delays, its progress, and its tables."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rich.console import Console

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import Outcome
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
