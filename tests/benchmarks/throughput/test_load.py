"""Load on a server with known delays: sending times and measured figures."""

from __future__ import annotations

import asyncio
import statistics

import numpy as np
import pytest

from metok_vllm.benchmarks.client.endpoint import (
    Endpoint,
    find_endpoint,
)
from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.throughput.load import Load, LoadRun, WarmUpError, send, warm_up
from metok_vllm.benchmarks.throughput.measures import measure
from tests.benchmarks.throughput.openai_server import MODEL, KnownServer, known_server, requests

# How late a client on the same machine may receive, beside its own measured lag.
LATE_S = 0.05


def stalled_s(run: LoadRun) -> float:
    return sum(run.client_lag_s)


def sent(server: KnownServer, load: Load, count: int = 8) -> LoadRun:
    with known_server(server) as endpoint:
        return asyncio.run(send(endpoint, requests(count), load))


def test_token_times_are_those_of_the_server() -> None:
    server = KnownServer(first_s=0.1, gap_s=0.03, tokens=5)
    run = sent(server, Load(max_concurrency=4))
    late = []
    for outcome in run.outcomes:
        assert outcome.error is None
        times = zip(outcome.token_times_s, server.sent_s[outcome.key], strict=True)
        late += [received - sent for received, sent in times]
    assert min(late) >= 0
    slack_s = LATE_S + stalled_s(run)
    assert statistics.median(late) < slack_s
    figures = measure(run, Scrapes())
    assert figures.ttft_s.p50 is not None
    assert 0.1 <= figures.ttft_s.p50 < 0.1 + slack_s
    assert figures.inter_token_s.mean is not None
    assert 0.03 - slack_s / 4 <= figures.inter_token_s.mean < 0.03 + slack_s
    assert figures.inter_token_s.count == 8 * 4


def test_a_closed_loop_holds_its_concurrency() -> None:
    server = KnownServer(first_s=0.1, gap_s=0, tokens=1)
    run = sent(server, Load(max_concurrency=3), count=12)
    assert server.most_running == 3
    figures = measure(run, Scrapes())
    # Four batches of three at 0.1 s each: 30 requests a second, less what the machine takes.
    assert 0.4 <= figures.duration_s < 0.4 + 4 * LATE_S + stalled_s(run)
    assert figures.requests_per_s == pytest.approx(12 / figures.duration_s)
    assert figures.video_seconds_per_s == pytest.approx(48 / figures.duration_s)


def test_outcomes_come_in_the_order_of_the_requests() -> None:
    run = sent(KnownServer(), Load(max_concurrency=5), count=11)
    assert [outcome.key for outcome in run.outcomes] == [str(n) for n in range(11)]


def test_without_a_bound_all_are_sent_at_once() -> None:
    server = KnownServer(first_s=0.2)
    sent(server, Load(), count=40)
    assert server.most_running == 40


def test_poisson_arrivals() -> None:
    load = Load(request_rate=4.0, seed=5)
    arrivals = load.arrivals_s(2000)
    gaps = np.diff([0.0, *arrivals])
    assert arrivals[-1] == pytest.approx(2000 / 4)
    assert min(gaps) > 0
    # Of an exponential distribution, deviation and mean are equal.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert load.arrivals_s(2000) == arrivals
    assert Load(request_rate=4.0, seed=6).arrivals_s(2000) != arrivals
    assert Load().arrivals_s(3) == [0, 0, 0]


def test_requests_start_when_they_arrive() -> None:
    load = Load(request_rate=40.0, seed=1)
    run = sent(KnownServer(first_s=0.3), load, count=10)
    starts = [outcome.started_s for outcome in run.outcomes]
    arrivals = load.arrivals_s(10)
    late = [s - starts[0] - (a - arrivals[0]) for s, a in zip(starts, arrivals, strict=True)]
    assert max(abs(value) for value in late) < LATE_S + stalled_s(run)


def test_failures_are_counted() -> None:
    server = KnownServer(refuse=frozenset({"1", "2"}), break_off=frozenset({"5"}))
    reported: list[Outcome] = []
    with known_server(server) as endpoint:
        run = asyncio.run(send(endpoint, requests(8), Load(2), on_outcome=reported.append))
    figures = measure(run, Scrapes())
    assert (figures.sent, figures.answered) == (8, 5)
    assert figures.errors == {
        "429: too many requests": 2,
        "the answer broke off before its end": 1,
    }
    assert sorted(outcome.key for outcome in reported) == [str(n) for n in range(8)]


def test_a_server_that_is_not_there_is_an_error_of_every_request() -> None:
    endpoint = Endpoint("gone", "http://127.0.0.1:9", MODEL)
    run = asyncio.run(send(endpoint, requests(2), Load(1)))
    assert all((outcome.error or "").startswith("ClientConnectorError") for outcome in run.outcomes)


def test_a_failed_warm_up_ends_it() -> None:
    with (
        known_server(KnownServer(refuse=frozenset({"1"}))) as endpoint,
        pytest.raises(WarmUpError, match="429: too many requests"),
    ):
        asyncio.run(warm_up(endpoint, requests(2), Load(1)))


def test_what_is_sent() -> None:
    server = KnownServer()
    with known_server(server) as found:
        endpoint = find_endpoint("x", f"{found.url}/v1/", extra_body={"metok": {"preset": "max"}})
        asyncio.run(send(endpoint, requests(1), Load(1)))
    (body,) = server.bodies
    assert (body["model"], body["stream"], body["max_tokens"]) == (MODEL, True, 4)
    assert body["metok"] == {"preset": "max"}


def test_secrets_are_not_described() -> None:
    endpoint = Endpoint("x", "http://me:word@host:1", MODEL, headers={"Authorization": "key"})
    described = str(endpoint.described())
    assert "word" not in described
    assert "key" not in described
