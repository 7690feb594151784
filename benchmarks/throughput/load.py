"""Load on one server: a closed loop with a concurrency, Poisson arrivals at a rate, or both.

In a closed loop the next request starts when one ends. Gaps between Poisson arrivals are
exponential and scaled to the exact mean rate, as in `vllm bench serve`. With both, the concurrency
bounds the requests in flight. A request with later turns holds its place until its conversation has
ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from metok_vllm.benchmarks.client.conversations import converse
from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.stream import Clock, Outcome

LAG_EVERY_S = 0.02

OnOutcome = Callable[[Outcome], None]


@dataclass(frozen=True)
class Load:
    """The timing of requests. Raises ValueError for an invalid concurrency or rate."""

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
        """The arrival time of each of `count` requests, in seconds from the start."""
        if math.isinf(self.request_rate):
            return [0.0] * count
        gaps = np.random.default_rng(self.seed).exponential(size=count)
        arrivals = np.cumsum(gaps)
        return [float(a) for a in arrivals * (count / self.request_rate / arrivals[-1])]


@dataclass(frozen=True)
class LoadRun:
    """The outcomes in the order of the requests and, within each, of its turns.

    `client_lag_s` are the delays of a timer in the client during the load. They bound the error
    that the client adds to a time.
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
    bodies = [endpoint.body(request) for request in requests]  # before the clock starts
    bound = asyncio.Semaphore(load.max_concurrency) if load.max_concurrency else nullcontext()
    arrivals_s = load.arrivals_s(len(requests))
    lags: list[float] = []
    async with endpoint.session(load.timeout_s) as session:
        origin_s = clock()

        async def one(number: int) -> list[Outcome]:
            await asyncio.sleep(max(0.0, origin_s + arrivals_s[number] - clock()))
            async with bound:
                return await converse(session, requests[number], bodies[number], clock, on_outcome)

        watch = asyncio.create_task(_watch_lag(lags))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number)) for number in range(len(requests))]
        finally:
            watch.cancel()
    return LoadRun(tuple(o for task in tasks for o in task.result()), tuple(lags))


async def warm_up(endpoint: Endpoint, requests: Sequence[BenchRequest], load: Load) -> None:
    """Send unmeasured requests at the later load, which triggers compilation and allocation.

    Raises WarmUpError with the first failure.
    """
    run = await send(endpoint, requests, load)
    for outcome in run.outcomes:
        if outcome.error is not None:
            raise WarmUpError(f"a warm-up request to {endpoint.name} failed: {outcome.error}")


class WarmUpError(Exception):
    """A server does not answer the workload."""


async def _watch_lag(lags: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(LAG_EVERY_S)
        lags.append(time.perf_counter() - begin - LAG_EVERY_S)
