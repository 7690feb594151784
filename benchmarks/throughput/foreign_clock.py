"""What the server itself says of a client's turn, beside what the client says of it.

On a machine that is shared a turn may be a fifth slower than the one before, whoever asks. The
server's histograms at `/metrics` tell how long the requests of just this turn took on its own
clock, so a client's mean over the server's says how the client counts, free of the hour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.request import BenchRequest
from metok_vllm.benchmarks.client.scrape import Scraper, Scrapes
from metok_vllm.benchmarks.throughput.foreign_clients import Client, Figures

# A client's mean, the server's histogram of the same, and the name of one over the other.
CLOCKS = (
    ("ttft_s_mean", "vllm:time_to_first_token_seconds", "ttft_over_servers"),
    ("end_to_end_s_mean", "vllm:e2e_request_latency_seconds", "end_to_end_over_servers"),
)
OVER_SERVERS = tuple(over for _, _, over in CLOCKS)


def beside_the_server(client: Client) -> Client:
    """The client with its means over the server's among its figures.

    One is not there where the client or the server does not tell it, or where the server counted
    other requests than the client's meanwhile.
    """

    def ask(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
        async def turn() -> Figures:
            async with Scraper(endpoint, time.perf_counter, during=False) as scraper:
                # Each client has an event loop of its own, or a process.
                told = await asyncio.to_thread(client, endpoint, requests, concurrency)
                await scraper.finish(len(requests))
            return dict(told) | over_servers(told, scraper.scrapes, len(requests))

        return asyncio.run(turn())

    return ask


def over_servers(told: Figures, scrapes: Scrapes, answered: int) -> dict[str, float]:
    """The client's means over the server's; `scrapes` from before and after its turn."""
    found = {}
    for mean, histogram, over in CLOCKS:
        count, seconds = scrapes.rise(f"{histogram}_count"), scrapes.rise(f"{histogram}_sum")
        if mean in told and count == answered and seconds:
            found[over] = told[mean] * count / seconds
    return found
