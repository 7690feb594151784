"""The comparison of clients, guidellm's scenario and report, and the server's own clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.throughput import foreign, foreign_clients
from metok_vllm.benchmarks.throughput.foreign import (
    compare,
    compare_figures,
    main,
    table,
)
from metok_vllm.benchmarks.throughput.foreign_clients import (
    OURS,
    Client,
    Figures,
    ForeignError,
    our_client,
    with_server_clock,
)
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, requests

FAST = {"requests_per_s": 4.0, "ttft_s_p50": 0.1}
SLOW = {"requests_per_s": 2.0, "ttft_s_p50": 0.5}


def test_differences_are_of_each_round() -> None:
    theirs = [{"requests_per_s": 4.2, "ttft_s_p50": 0.1}, {"requests_per_s": 2.2}]
    theirs[1]["ttft_s_p50"] = 0.45
    pair = compare_figures("theirs", 4, [FAST, SLOW], theirs)
    # Medians over rounds: 3.0 beside 3.2; round by round 5 % and 10 %.
    assert pair.ours["requests_per_s"] == pytest.approx(3.0)
    assert pair.theirs["requests_per_s"] == pytest.approx(3.2)
    assert pair.difference == pytest.approx({"requests_per_s": 0.075, "ttft_s_p50": -0.05})
    assert pair.rounds == [
        {"ours": FAST, "theirs": theirs[0]},
        {"ours": SLOW, "theirs": theirs[1]},
    ]
    assert "| theirs | 4 | requests_per_s | 3 | 3.2 | +7.5 % (+5.0 to +10.0) |" in table([pair])


def test_clients_take_turns_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def client(name: str) -> Client:
        def run(endpoint: Endpoint, batch: Sequence[BenchRequest], concurrency: int) -> Figures:
            turns.append(name)
            return our_client(endpoint, batch, concurrency)

        return run

    monkeypatch.setattr(foreign, "our_client", client("o"))
    server = KnownServer(first_s=0.0, gap_s=0.005)
    with known_server(server) as endpoint:
        rounds = [requests(1, name) for name in "abcdefg"]
        compare({"x": client("x"), "y": client("y")}, endpoint, rounds, 1, rest_s=0.0)
    orders = ["".join(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert sorted(orders[:6]) == ["oxy", "oyx", "xoy", "xyo", "yox", "yxo"]
    assert orders[6:] == orders[:1]
    sent = [body["messages"][0]["content"] for body in server.bodies]
    assert sent == [f"{name}0" for name in "abcdefg" for _ in range(3)]


def test_a_request_without_an_answer_ends_it() -> None:
    server = KnownServer(refuse=frozenset({"1"}))
    with known_server(server) as endpoint, pytest.raises(ForeignError, match=f"1 of 2 .* {OURS}"):
        compare({}, endpoint, [requests(2)], 1, rest_s=0.0)


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    flags = ["--frames", "8", "--output-len", "4", "--num-prompts", "2", "--rounds", "1"]
    main(["--checkpoint", "cpu-reference", *flags, "--max-concurrency", "2"])
    reported = json.loads(capsys.readouterr().out.splitlines()[-1])
    (pair,) = reported["pairs"]
    assert pair["client"] == "vllm bench serve"
    assert pair["ours"]["requests_per_s"] > 0
    assert reported["configuration"]["checkpoint"] == "cpu-reference"
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "metok_vllm.cli" in child.cmdline()]


def test_guidellms_scenario(tmp_path: Path) -> None:
    endpoint = Endpoint("x", "http://h:1", "model", extra_body={"metok": {"preset": "max"}})
    batch = requests(3)
    spec = json.loads(foreign_clients.write_scenario(tmp_path, endpoint, batch, 2).read_text())
    assert spec["spec"]["backend"]["extras"]["body"] == {
        "max_tokens": 4,
        "metok": {"preset": "max"},
    }
    assert spec["spec"]["constraints"] == [{"kind": "max_requests", "count": 3}]
    lines = Path(spec["spec"]["data"][0]["path"]).read_text().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [r.body["messages"] for r in batch]


def test_guidellm_has_one_body_for_all_requests(tmp_path: Path) -> None:
    first, second = requests(2)
    second.body["max_tokens"] = 9
    with pytest.raises(ValueError, match="messages alone"):
        foreign_clients.write_scenario(tmp_path, Endpoint("x", "u", "m"), [first, second], 1)


def test_guidellms_report() -> None:
    def spread(mean: float, p50: float) -> dict[str, Any]:
        return {"successful": {"mean": mean, "percentiles": {"p50": p50}}}

    metrics = {
        "request_totals": {"successful": 8},
        "requests_per_second": spread(2.0, 9.0),
        "output_tokens_per_second": spread(16.0, 9.0),
        "time_to_first_token_ms": spread(250.0, 200.0),
        "inter_token_latency_ms": spread(9.0, 50.0),
        "request_latency": spread(0.75, 0.55),
    }
    assert foreign_clients.guidellm_figures({"benchmarks": [{"metrics": metrics}]}) == {
        "answered": 8.0,
        "requests_per_s": 2.0,
        "output_tokens_per_s": 16.0,
        "ttft_s_p50": 0.2,
        "per_output_token_s_p50": 0.05,
        "end_to_end_s_p50": 0.55,
        "ttft_s_mean": 0.25,
        "end_to_end_s_mean": 0.75,
    }


# The server's histograms have 0.05 s to the first token and 0.11 s in all.
FIXED = {"ttft_s_mean": 0.06, "end_to_end_s_mean": 0.22}


def fixed_client(endpoint: Endpoint, batch: Sequence[BenchRequest], concurrency: int) -> Figures:
    """Sends the requests and returns fixed figures."""
    our_client(endpoint, batch, concurrency)
    return FIXED


def test_means_over_the_servers_own() -> None:
    with known_server(KnownServer()) as endpoint:
        # Earlier requests do not count.
        our_client(endpoint, requests(3, "before"), 1)
        figures = with_server_clock(fixed_client)(endpoint, requests(2), 2)
    assert figures == FIXED | {
        "ttft_over_servers": pytest.approx(1.2),
        "end_to_end_over_servers": pytest.approx(2.0),
    }


def test_our_own_times_are_near_the_servers() -> None:
    server = KnownServer(first_s=0.3, gap_s=0.1)
    with known_server(server) as endpoint:
        figures = with_server_clock(our_client)(endpoint, requests(2), 1)
    assert 1.0 <= figures["ttft_over_servers"] < 1.3
    assert 1.0 <= figures["end_to_end_over_servers"] < 1.3


def test_requests_of_other_clients_give_no_ratio() -> None:
    def with_others(endpoint: Endpoint, batch: Sequence[BenchRequest], concurrency: int) -> Figures:
        our_client(endpoint, requests(1, "other"), 1)
        return fixed_client(endpoint, batch, concurrency)

    with known_server(KnownServer()) as endpoint:
        assert with_server_clock(with_others)(endpoint, requests(2), 2) == FIXED
