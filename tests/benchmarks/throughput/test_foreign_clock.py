"""A client's times over the server's own, of just its turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.throughput.foreign import compare, table
from metok_vllm.benchmarks.throughput.foreign_clients import Figures, beside_the_server, our_client
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, requests

# The server says 0.05 s to the first token, and 0.11 s in all.
SAID = {"ttft_s_mean": 0.06, "end_to_end_s_mean": 0.22}


def says(endpoint: Endpoint, asked: Sequence[BenchRequest], concurrency: int) -> Figures:
    """Asks, and says what it likes."""
    our_client(endpoint, asked, concurrency)
    return SAID


def test_means_over_the_servers_own() -> None:
    with known_server(KnownServer()) as endpoint:
        # Only its own turn counts, not what the server did before.
        our_client(endpoint, requests(3, "before"), 1)
        told = beside_the_server(says)(endpoint, requests(2), 2)
    assert told == SAID | {
        "ttft_over_servers": pytest.approx(1.2),
        "end_to_end_over_servers": pytest.approx(2.0),
    }


def test_our_own_times_are_the_servers_and_the_way() -> None:
    server = KnownServer(first_s=0.3, gap_s=0.1)
    with known_server(server) as endpoint:
        told = beside_the_server(our_client)(endpoint, requests(2), 1)
    assert 1.0 <= told["ttft_over_servers"] < 1.3
    assert 1.0 <= told["end_to_end_over_servers"] < 1.3


def test_requests_of_others_spoil_it() -> None:
    def with_others(endpoint: Endpoint, asked: Sequence[BenchRequest], concurrency: int) -> Figures:
        our_client(endpoint, requests(1, "other"), 1)
        return says(endpoint, asked, concurrency)

    with known_server(KnownServer()) as endpoint:
        assert beside_the_server(with_others)(endpoint, requests(2), 2) == SAID


def test_a_server_without_metrics_or_a_client_without_means() -> None:
    def without(endpoint: Endpoint, asked: Sequence[BenchRequest], concurrency: int) -> Figures:
        return {"ttft_s_p50": says(endpoint, asked, concurrency)["ttft_s_mean"]}

    with known_server(KnownServer(metrics=False)) as endpoint:
        assert beside_the_server(says)(endpoint, requests(1), 1) == SAID
    with known_server(KnownServer()) as endpoint:
        assert beside_the_server(without)(endpoint, requests(1), 1) == {"ttft_s_p50": 0.06}


def test_it_is_compared_as_other_figures_are() -> None:
    with known_server(KnownServer()) as endpoint:
        (pair,) = compare({"it": says}, endpoint, [requests(2)], 2, rest_s=0.0)
    assert pair.theirs["ttft_over_servers"] == pytest.approx(1.2)
    assert "ttft_over_servers" in table([pair])
