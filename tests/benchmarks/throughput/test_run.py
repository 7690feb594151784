"""An experiment on two servers with known delays: order, requests, ratios."""

from __future__ import annotations

from itertools import pairwise

import pytest

from metok_vllm.benchmarks.throughput.load import Load, WarmUpError
from metok_vllm.benchmarks.throughput.pairs import compare
from metok_vllm.benchmarks.throughput.run import Sweep, describe
from tests.benchmarks.throughput.experiments import Watcher, run_pair
from tests.benchmarks.throughput.openai_server import KnownServer

NAMES = ("plain", "metok")


def sweep(frames: int = 8, rounds: int = 2, num_warmups: int = 0, rest_s: float = 0.0) -> Sweep:
    return Sweep((frames,), (Load(max_concurrency=2),), 4, num_warmups, rounds, rest_s)


def test_servers_take_turns_with_the_same_requests() -> None:
    plain, other, watcher = KnownServer(), KnownServer(), Watcher()
    (cell,), _ = run_pair(plain, other, sweep(num_warmups=3), watcher)
    assert watcher.begun == [
        ("8 frames, 2 in flight, warm-up, plain", 3),
        ("8 frames, 2 in flight, warm-up, metok", 3),
        ("8 frames, 2 in flight, round 1/2, plain", 4),
        ("8 frames, 2 in flight, round 1/2, metok", 4),
        ("8 frames, 2 in flight, round 2/2, plain", 4),
        ("8 frames, 2 in flight, round 2/2, metok", 4),
    ]
    assert [measures is None for measures in watcher.ended] == [True] * 2 + [False] * 4
    sent = [body["messages"][0]["content"] for body in plain.bodies]
    assert sorted(sent) == sorted(f"8-{number}" for number in range(3 + 4 + 4))
    assert sorted(sent) == sorted(body["messages"][0]["content"] for body in other.bodies)
    # Warm-up requests are in no figure.
    keys = {o.key for runs in cell.rounds for run in runs.values() for o in run.outcomes}
    assert keys == {f"8-{number}" for number in range(3, 11)}
    assert sum(run.measures.sent for runs in cell.rounds for run in runs.values()) == 16


def test_a_turn_begins_after_a_rest() -> None:
    (cell,), _ = run_pair(KnownServer(), KnownServer(), sweep(rest_s=0.3))
    turns = [run.outcomes for runs in cell.rounds for run in runs.values()]
    for last, following in pairwise(turns):
        began_s = min(outcome.started_s for outcome in following)
        assert began_s - max(outcome.ended_s for outcome in last) >= 0.3


def test_the_ratio_is_that_of_the_delays() -> None:
    plain = KnownServer(first_s=0.4, gap_s=0.04)
    other = KnownServer(first_s=0.1, gap_s=0.04)
    (cell,), _ = run_pair(plain, other, sweep(num_warmups=0, rounds=3))
    found = compare(cell, NAMES)
    assert found.refused is None
    assert found.agreement is not None
    assert found.agreement.exact == 1
    # 0.52 s to 0.22 s a request, 0.4 s to 0.1 s to the first token; a busy machine adds to both.
    assert 1.2 < found.ratios["requests_per_s"].median < 4
    assert 1.5 < found.ratios["ttft_s_p50"].median < 8
    rounds = [[runs[name].measures for name in NAMES] for runs in cell.rounds]
    for name, ratios in (
        ("requests_per_s", [b.requests_per_s / a.requests_per_s for a, b in rounds]),
        ("ttft_s_p50", [(a.ttft_s.p50 or 0) / (b.ttft_s.p50 or 1) for a, b in rounds]),
    ):
        assert found.ratios[name].rounds == pytest.approx(tuple(ratios))
        assert found.ratios[name].median == sorted(found.ratios[name].rounds)[1]


def test_no_ratio_where_requests_failed() -> None:
    other = KnownServer(refuse=frozenset({"8-1"}))
    (cell,), _ = run_pair(KnownServer(), other, sweep(num_warmups=0))
    found = compare(cell, NAMES)
    assert found.refused == "requests failed: 1 of metok"
    assert found.ratios == {}


def test_every_length_and_load_is_a_cell_with_requests_of_its_own() -> None:
    loads = (Load(max_concurrency=1), Load(request_rate=100.0))
    plain = KnownServer(first_s=0.01, gap_s=0)
    whole = Sweep((8, 64), loads, num_prompts=2, num_warmups=1, rounds=1, rest_s=0)
    cells, _ = run_pair(plain, KnownServer(first_s=0.01, gap_s=0), whole)
    assert [(cell.frames, describe(cell.load)) for cell in cells] == [
        (8, "1 in flight"),
        (8, "100 requests/s"),
        (64, "1 in flight"),
        (64, "100 requests/s"),
    ]
    sent = [body["messages"][0]["content"] for body in plain.bodies]
    assert len(set(sent)) == len(sent) == 4 * 3


def test_a_server_that_fails_its_warm_up_ends_the_experiment() -> None:
    with pytest.raises(WarmUpError, match="to metok failed"):
        run_pair(KnownServer(), KnownServer(refuse=frozenset({"8-0"})), sweep(num_warmups=1))
