"""Metrics before, during and after a run."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.scrape import (
    FINISHED,
    GAUGES,
    USAGE,
    Scraper,
    Scrapes,
    Snapshot,
    select_lines,
)
from metok_vllm.benchmarks.throughput.load import Load, send
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, requests

TEXT = """# HELP vllm:num_preemptions_total Cumulative number of preemptions.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 3.0
vllm:num_preemptions_total{engine="1",model_name="m"} 4.0
# HELP vllm:kv_cache_usage_perc usage
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.25
metok_stage_seconds_sum{stage="1"} 1.5
metok_stage_seconds_sum{stage="2"} 0.5
metok_kv_blocks_held 12
vllm:cache_config_info{block_size="16",num_gpu_blocks="500"} 1.0
"""


def test_a_snapshot_adds_up_series() -> None:
    snapshot = Snapshot.parse(1.0, TEXT)
    assert snapshot.total("vllm:num_preemptions_total") == 7
    assert snapshot.total("vllm:num_preemptions_total", engine="1") == 4
    assert snapshot.total("metok_stage_seconds_sum", stage="1") == 1.5
    assert snapshot.total("metok_stage_seconds_sum", stage="3") is None
    assert snapshot.total("vllm:num_preemptions") is None


def test_a_rise_is_the_difference() -> None:
    before = Snapshot.parse(0, "a_total 5\n")
    after = Snapshot.parse(1, 'a_total 8\nnew_total{k="x"} 2\n')
    scrapes = Scrapes(before, after)
    assert scrapes.rise("a_total") == 3
    assert scrapes.rise("new_total") == 2
    assert scrapes.rise("none_total") is None
    assert Scrapes(before, None).rise("a_total") is None


def test_the_pool() -> None:
    scrapes = Scrapes(Snapshot.parse(0, TEXT))
    assert scrapes.pool() == {"blocks": 500, "block_size": 16}
    assert Scrapes(Snapshot.parse(0, "a 1\n")).pool() is None
    assert Scrapes().pool() is None


def test_only_the_gauges_are_kept_during_a_run() -> None:
    kept = select_lines(TEXT, GAUGES)
    assert kept == 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nmetok_kv_blocks_held 12\n'
    assert Snapshot.parse(0, kept).total(USAGE) == 0.25


def test_a_run_is_scraped_all_along() -> None:
    server = KnownServer(first_s=0.25)

    async def run(endpoint: Endpoint) -> Scrapes:
        async with Scraper(endpoint, time.perf_counter, every_s=0.05, share=0.9) as scraper:
            await send(endpoint, requests(4), Load(2))
            await scraper.finish(4)
        return scraper.scrapes

    with known_server(server) as endpoint:
        scrapes = asyncio.run(run(endpoint))
    assert scrapes.rise(FINISHED) == 4
    assert scrapes.rise("vllm:time_to_first_token_seconds_sum") == pytest.approx(4 * 0.25)
    usage = scrapes.over_time(USAGE)
    assert max(value for _, value in usage) == 0.2
    times_s = [time_s for time_s, _ in usage]
    assert times_s == sorted(times_s)
    assert len(usage) >= 4  # more than half a second at 0.05 s, on a machine that may be slow


def test_slow_pages_are_fetched_less_often() -> None:
    """A page takes 7 ms of vLLM's event loop and delays all streams."""

    async def run(endpoint: Endpoint) -> Scrapes:
        async with Scraper(endpoint, time.perf_counter, every_s=0.01, share=0.25) as scraper:
            await asyncio.sleep(1.1)
        return scraper.scrapes

    with known_server(KnownServer(metrics_s=0.1)) as endpoint:
        times_s = [time_s for time_s, _ in asyncio.run(run(endpoint)).over_time(USAGE)]
    assert 1 <= len(times_s) <= 3  # at 0.1, 0.6 and 1.1 s, or later
    assert all(later - time_s >= 0.4 for time_s, later in pairwise(times_s))


def test_a_server_without_metrics_causes_no_delay() -> None:
    async def run(endpoint: Endpoint) -> Scrapes:
        async with Scraper(endpoint, time.perf_counter) as scraper:
            await scraper.finish(1000)
        return scraper.scrapes

    with known_server(KnownServer(metrics=False)) as endpoint:
        scrapes = asyncio.run(run(endpoint))
    assert scrapes.before is None
    assert scrapes.rise(FINISHED) is None
    assert scrapes.over_time(USAGE) == []
