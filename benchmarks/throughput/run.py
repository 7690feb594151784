"""One experiment: a sweep of video lengths and loads over one server or several in turn.

For every length and load, each server is warmed up. In each round, one server after the other
receives the same new requests (A B, A B, ...). Disturbances of the machine then affect both. Only
one server is under load at a time, and each turn begins after a rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.processes import HostMeter
from metok_vllm.benchmarks.client.scrape import Scraper
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.throughput.load import Load, LoadRun, send, warm_up
from metok_vllm.benchmarks.throughput.measures import Measures, measure

# With so many requests a closed loop is full most of the time.
PROMPTS_PER_SLOT = 4
MIN_PROMPTS = 8
# vLLM's processes poll for a second after their last step (shm_broadcast.py, SpinCondition). On two
# cores this delayed the next server's first video by 0.7 s.
REST_S = 1.5

Requests = Callable[[int], Iterator[BenchRequest]]


@dataclass(frozen=True)
class Sweep:
    """The cells of an experiment.

    `num_prompts` defaults to four for each request in flight and at least eight, `num_warmups` to
    the requests in flight and at most four. With several servers, each turn begins after `rest_s`
    seconds without load. A conversation counts as one prompt.
    """

    frames: tuple[int, ...]
    loads: tuple[Load, ...]
    num_prompts: int | None = None
    num_warmups: int | None = None
    rounds: int = 3
    rest_s: float = REST_S

    def prompts(self, load: Load) -> int:
        """Requests in a round."""
        if self.num_prompts is not None:
            return self.num_prompts
        return max(MIN_PROMPTS, PROMPTS_PER_SLOT * (load.max_concurrency or 0))

    def warmups(self, load: Load) -> int:
        """Requests to each server before the first round."""
        return (
            self.num_warmups if self.num_warmups is not None else min(load.max_concurrency or 4, 4)
        )


@dataclass(frozen=True)
class Run:
    """One server in one round."""

    measures: Measures
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Cell:
    """One length and load. Each of `rounds` maps a server's name to its run, in order."""

    frames: int
    load: Load
    rounds: list[Mapping[str, Run]] = field(default_factory=list)


class Watch(Protocol):
    """Receives the progress of an experiment."""

    def begin(self, title: str, requests: int) -> None:
        """A run of `requests` requests begins."""

    def outcome(self, outcome: Outcome) -> None:
        """A request of the run is complete."""

    def end(self, measures: Measures | None) -> None:
        """The run is complete; `measures` is None after a warm-up."""


async def experiment(
    endpoints: Sequence[Endpoint],
    sweep: Sweep,
    requests: Requests,
    watch: Watch,
) -> AsyncIterator[Cell]:
    """Run the sweep and yield each cell when it is complete.

    `requests` gives an endless stream for a number of frames. Raises WarmUpError if a server does
    not answer the workload.
    """
    for frames in sweep.frames:
        stream = requests(frames)
        for load in sweep.loads:
            yield await _cell(endpoints, sweep, frames, load, stream, watch)


async def _cell(
    endpoints: Sequence[Endpoint],
    sweep: Sweep,
    frames: int,
    load: Load,
    stream: Iterator[BenchRequest],
    watch: Watch,
) -> Cell:
    cell = Cell(frames, load)
    name = f"{frames} frames, {describe(load)}"
    rest_s = sweep.rest_s if len(endpoints) > 1 else 0.0
    if sweep.warmups(load):
        first = list(islice(stream, sweep.warmups(load)))
        unlimited = replace(load, request_rate=float("inf"))
        for endpoint in endpoints:
            await asyncio.sleep(rest_s)
            watch.begin(f"{name}, warm-up, {endpoint.name}", _turns(first))
            await warm_up(endpoint, first, unlimited)
            watch.end(None)
    for number in range(sweep.rounds):
        batch = list(islice(stream, sweep.prompts(load)))
        runs: dict[str, Run] = {}
        for endpoint in endpoints:
            await asyncio.sleep(rest_s)
            title = f"{name}, round {number + 1}/{sweep.rounds}, {endpoint.name}"
            watch.begin(title, _turns(batch))
            arrivals = replace(load, seed=load.seed + number)
            runs[endpoint.name] = await run_once(endpoint, batch, arrivals, watch.outcome)
            watch.end(runs[endpoint.name].measures)
        cell.rounds.append(runs)
    return cell


async def run_once(
    endpoint: Endpoint,
    batch: Sequence[BenchRequest],
    load: Load,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> Run:
    """One batch on one server, measured by the client, the server's metrics and the host."""
    clock = time.perf_counter
    async with Scraper(endpoint, clock) as scraper:
        async with HostMeter(endpoint.pid) as host:
            loaded: LoadRun = await send(endpoint, batch, load, clock, on_outcome)
        await scraper.finish(sum(outcome.error is None for outcome in loaded.outcomes))
    return Run(measure(loaded, scraper.scrapes, host.use()), loaded.outcomes)


def _turns(batch: Sequence[BenchRequest]) -> int:
    """The requests of a batch, with those of later turns."""
    return sum(request.turns for request in batch)


def describe(load: Load) -> str:
    """A load as text."""
    parts = []
    if load.max_concurrency is not None:
        parts.append(f"{load.max_concurrency} in flight")
    if load.request_rate != float("inf"):
        parts.append(f"{load.request_rate:g} requests/s")
    return ", ".join(parts) or "all at once"
