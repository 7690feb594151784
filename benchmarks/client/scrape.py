"""A server's metrics from `/metrics`: before a run, after it, and every half second.

During a run only the gauges are kept, unparsed, because the client's event loop also carries the
load. The server renders the page on the loop that sends its tokens, so a slow page is fetched less
often. A server without `/metrics` is measured by the client alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.stream import Clock

EVERY_S = 0.5
SHARE = 0.01  # of a run's time may be spent waiting for pages
LONGEST_S = 2.0  # between two pages, so that a busy server's peaks are recorded
SCRAPE_S = 10.0
SETTLE_S = 5.0

USAGE = "vllm:kv_cache_usage_perc"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
HELD = "metok_kv_blocks_held"
CACHE = "vllm:cache_config_info"
FINISHED = "vllm:e2e_request_latency_seconds_count"
PREEMPTIONS = "vllm:num_preemptions_total"
GAUGES = (USAGE, RUNNING, WAITING, HELD)


@dataclass(frozen=True)
class Snapshot:
    """The samples of one scrape, taken at `time_s` on the clock of the run."""

    time_s: float
    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    @classmethod
    def parse(cls, time_s: float, text: str) -> Snapshot:
        """From the Prometheus text format. Raises ValueError for other text."""
        families = text_string_to_metric_families(text)
        samples = (sample for family in families for sample in family.samples)
        return cls(time_s, tuple((s.name, s.labels, s.value) for s in samples))

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over all series of a name with these labels; None without such a series."""
        wanted = labels.items()
        values = [v for n, have, v in self.samples if n == name and wanted <= have.items()]
        return sum(values) if values else None

    def label(self, name: str, label: str) -> str | None:
        """A label of the first series of a name that has it."""
        return next(
            (have[label] for n, have, _ in self.samples if n == name and label in have), None
        )


@dataclass
class Scrapes:
    """All scrapes of one run."""

    before: Snapshot | None = None
    after: Snapshot | None = None
    during: list[Snapshot] = field(default_factory=list)

    def rise(self, name: str, **labels: str) -> float | None:
        """The increase of a counter over the run; None if the server lacks it.

        A series that appears during the run starts at 0.
        """
        if self.before is None or self.after is None:
            return None
        after = self.after.total(name, **labels)
        return None if after is None else after - (self.before.total(name, **labels) or 0.0)

    def over_time(self, name: str) -> list[tuple[float, float]]:
        """(time, value) of a gauge during the run."""
        values = ((snapshot.time_s, snapshot.total(name)) for snapshot in self.during)
        return [(time_s, value) for time_s, value in values if value is not None]

    def pool(self) -> dict[str, Any] | None:
        """The server's number of KV blocks and tokens a block; None if it states neither."""
        blocks = None if self.before is None else self.before.label(CACHE, "num_gpu_blocks")
        if self.before is None or blocks is None or not blocks.isdigit():
            return None
        size = self.before.label(CACHE, "block_size") or ""
        return {"blocks": int(blocks), "block_size": int(size) if size.isdigit() else None}


class Scraper:
    """An async context around a run; `scrapes` is complete when it exits.

    Pages are fetched every `every_s` seconds, or less often so that waiting for them takes `share`
    of the time, but at least every LONGEST_S. Without `during`, only before and after the run.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        clock: Clock,
        every_s: float = EVERY_S,
        share: float = SHARE,
        during: bool = True,
    ) -> None:
        self.scrapes = Scrapes()
        self._client = endpoint.client(SCRAPE_S)
        self._clock = clock
        self._every_s = every_s
        self._share = share
        self._during = during
        self._raw: list[tuple[float, str]] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Scraper:
        self.scrapes.before = await self._snapshot()
        if self._during and self.scrapes.before is not None:
            self._task = asyncio.create_task(self._repeat())
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_task(self._task)
        self.scrapes.during = [Snapshot.parse(time_s, text) for time_s, text in self._raw]
        await self._client.aclose()

    async def finish(self, completed: int) -> None:
        """Take the last scrape when the server has counted `completed` requests, or after SETTLE_S.

        A server counts a request shortly after its client has the answer.
        """
        deadline_s = self._clock() + SETTLE_S
        while self.scrapes.before is not None:
            self.scrapes.after = await self._snapshot()
            counted = self.scrapes.rise(FINISHED)
            if counted is None or counted >= completed or self._clock() > deadline_s:
                return
            await asyncio.sleep(0.1)

    async def _snapshot(self) -> Snapshot | None:
        text = await self._text()
        try:
            return None if text is None else Snapshot.parse(self._clock(), text)
        except ValueError:
            return None

    async def _repeat(self) -> None:
        while True:
            requested_s = self._clock()
            text = await self._text()
            received_s = self._clock()
            if text is not None:
                self._raw.append((received_s, select_lines(text, GAUGES)))
            rest_s = max(self._every_s, (received_s - requested_s) / self._share)
            await asyncio.sleep(min(rest_s, LONGEST_S))

    async def _text(self) -> str | None:
        try:
            answer = await self._client.get("/metrics")
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None


async def stop_task(task: asyncio.Task[None] | None) -> None:
    """Cancel an endless background task and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def select_lines(text: str, names: Sequence[str]) -> str:
    """The lines of the named metrics, to be parsed later."""
    starts = tuple(name + end for name in names for end in ("{", " "))
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(starts))
