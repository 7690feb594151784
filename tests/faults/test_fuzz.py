"""Two thousand requests that are wrong in some way, always the same, against one server.

Catches: a 500 for what a client sent, an error without an envelope, an answer that does not come,
a request after which the next good one fails, memory that grows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from random import Random

import pytest

from metok_vllm.benchmarks.client.processes import ROOT_ROLE, memory_use
from metok_vllm.benchmarks.soak.mutations import mutated_request
from metok_vllm.benchmarks.soak.requests import Request, good_request
from metok_vllm.benchmarks.soak.run import Outcome, send_all
from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import MODEL
from tests.faults.servers import KEY, running

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(1800)]

REQUESTS = int(os.environ.get("METOK_FUZZ_REQUESTS", "2000"))
FIRST_SEED = 1
BATCHES = 10
THREADS = 6
SLOWEST_S = 30.0
# Allocators keep some of what the largest bodies took; the soak measures more finely.
MORE_MEMORY = 1.25


@pytest.fixture(scope="module")
def server() -> Iterator[ChildServer]:
    with running("--api-key", KEY) as server:
        yield server


def send(server: ChildServer, make: Callable[[int], Request], numbers: range) -> Outcome:
    return send_all(server.url, {"authorization": f"Bearer {KEY}"}, numbers, make, THREADS)


def good(number: int) -> Request:
    return good_request(Random(number), MODEL)


def wrong(number: int) -> Request:
    return mutated_request(number, MODEL)


def test_good_requests_are_answered(server: ChildServer) -> None:
    outcome = send(server, good, range(100))
    assert set(outcome.statuses) == {"200"}, outcome
    assert outcome.odd == []


def test_wrong_requests_leave_the_server_as_it_was(server: ChildServer) -> None:
    before = memory_use(server.process.pid)
    size = REQUESTS // BATCHES
    for start in range(FIRST_SEED, FIRST_SEED + REQUESTS, size):
        outcome = send(server, wrong, range(start, start + size))
        assert outcome.odd == []
        assert outcome.slowest_s < SLOWEST_S, outcome.slowest
        after = send(server, good, range(5))
        assert set(after.statuses) == {"200"}, (start, after)
    now = memory_use(server.process.pid)
    assert now.processes["engine core"] == before.processes["engine core"]
    # Engine and workers have caches that are still filling.
    assert now.rss_mib[ROOT_ROLE] < before.rss_mib[ROOT_ROLE] * MORE_MEMORY, (before, now)
