"""Load on one server: a closed loop at a concurrency, or arrivals at a rate, or both.

With a concurrency, so many requests are in flight and the next one starts when one ends. With a
rate, gaps between arrivals are exponential (Poisson), scaled so that they add up to what the rate
says, as `vllm bench serve` does. With both, the concurrency bounds the arrivals.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import Clock, Outcome, ask

LAG_EVERY_S = 0.02

OnOutcome = Callable[[Outcome], None]


@dataclass(frozen=True)
class Load:
    """How requests are sent. Raises ValueError for what cannot be."""

    max_concurrency: int | None = None
    request_rate: float = math.inf
    seed: int = 0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, got {self.max_concurrency}")
        if not self.request_rate > 0:
            raise ValueError(f"request_rate must be above 0, got {self.request_rate}")

    def arrivals_s(self, count: int) -> list[float]:
        """When each of `count` requests arrives, seconds from the start."""
        if math.isinf(self.request_rate):
            return [0.0] * count
        gaps = np.random.default_rng(self.seed).exponential(size=count)
        arrivals = np.cumsum(gaps)
        return [float(a) for a in arrivals * (count / self.request_rate / arrivals[-1])]


@dataclass(frozen=True)
class LoadRun:
    """The outcomes in order of the requests.

    `client_lag_s` are the delays of a timer in the client beside the load: what the client itself
    may have added to a time.
    """

    outcomes: tuple[Outcome, ...]
    client_lag_s: tuple[float, ...]


async def send(
    endpoint: Endpoint,
    requests: Sequence[BenchRequest],
    load: Load,
    clock: Clock = time.perf_counter,
    on_outcome: OnOutcome | None = None,
) -> LoadRun:
    """Send all of `requests` and wait for all answers. A failed request is an outcome too."""
    bodies = [endpoint.body(request) for request in requests]  # not while the clock runs
    bound = asyncio.Semaphore(load.max_concurrency) if load.max_concurrency else nullcontext()
    arrivals_s = load.arrivals_s(len(requests))
    lags: list[float] = []
    async with endpoint.session(load.timeout_s) as session:
        origin_s = clock()

        async def one(number: int) -> Outcome:
            await asyncio.sleep(max(0.0, origin_s + arrivals_s[number] - clock()))
            async with bound:
                outcome = await ask(session, requests[number], bodies[number], clock)
            if on_outcome is not None:
                on_outcome(outcome)
            return outcome

        watch = asyncio.create_task(_watch_lag(lags))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(len(requests))]
        finally:
            watch.cancel()
    return LoadRun(tuple(task.result() for task in tasks), tuple(lags))


async def warm_up(endpoint: Endpoint, requests: Sequence[BenchRequest], load: Load) -> None:
    """Send requests that nothing is measured of. Raises the first error: nothing else would work.

    As many at once as later, so that what is compiled or allocated once is done.
    """
    run = await send(endpoint, requests, load)
    for outcome in run.outcomes:
        if outcome.error is not None:
            raise WarmUpError(f"a warm-up request to {endpoint.name} failed: {outcome.error}")


class WarmUpError(Exception):
    """A server that does not answer the workload at all."""


async def _watch_lag(lags: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(LAG_EVERY_S)
        lags.append(time.perf_counter() - begin - LAG_EVERY_S)
