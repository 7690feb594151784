"""How clients are compared, and what guidellm is given and says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.throughput import foreign, foreign_clients
from metok_vllm.benchmarks.throughput.foreign import Beside, beside, compare, main, table
from metok_vllm.benchmarks.throughput.foreign_clients import (
    OURS,
    Client,
    Figures,
    ForeignError,
    guidellm_client,
    our_client,
)
from metok_vllm.benchmarks.throughput.foreign_vllm import uncounted
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, requests

FAST = {"requests_per_s": 4.0, "ttft_s_p50": 0.1}
SLOW = {"requests_per_s": 2.0, "ttft_s_p50": 0.5}


def test_differences_are_of_each_round() -> None:
    theirs = [{"requests_per_s": 4.2, "ttft_s_p50": 0.1}, {"requests_per_s": 2.2}]
    theirs[1]["ttft_s_p50"] = 0.45
    pair = beside("theirs", 4, [FAST, SLOW], theirs)
    # Medians over rounds: 3.0 beside 3.2; round by round 5 % and 10 %.
    assert pair.ours["requests_per_s"] == pytest.approx(3.0)
    assert pair.theirs["requests_per_s"] == pytest.approx(3.2)
    assert pair.difference == pytest.approx({"requests_per_s": 0.075, "ttft_s_p50": -0.05})
    assert pair.rounds == [
        {"ours": FAST, "theirs": theirs[0]},
        {"ours": SLOW, "theirs": theirs[1]},
    ]
    assert "| theirs | 4 | requests_per_s | 3 | 3.2 | +7.5 % (+5.0 to +10.0) |" in table([pair])


def test_what_a_client_does_not_tell_is_left_out() -> None:
    pair = beside("theirs", 1, [FAST], [{"ttft_s_p50": 0.1}])
    told = {"ttft_s_p50": 0.1}
    rounds = [{"ours": FAST, "theirs": told}]
    assert pair == Beside("theirs", 1, told, told, {"ttft_s_p50": 0}, {"ttft_s_p50": [0]}, rounds)


def test_clients_take_turns_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def client(name: str) -> Client:
        def ask(endpoint: Endpoint, asked: Sequence[BenchRequest], concurrency: int) -> Figures:
            turns.append(name)
            return our_client(endpoint, asked, concurrency)

        return ask

    monkeypatch.setattr(foreign, "our_client", client("o"))
    server = KnownServer(first_s=0.0, gap_s=0.005)
    with known_server(server) as endpoint:
        rounds = [requests(1, name) for name in "abcdefg"]
        compare({"x": client("x"), "y": client("y")}, endpoint, rounds, 1, rest_s=0.0)
    orders = ["".join(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    assert sorted(orders[:6]) == ["oxy", "oyx", "xoy", "xyo", "yox", "yxo"]
    assert orders[6:] == orders[:1]
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert asked == [f"{name}0" for name in "abcdefg" for _ in range(3)]


def test_a_turn_begins_after_a_rest() -> None:
    server = KnownServer(first_s=0.0, gap_s=0.005)
    with known_server(server) as endpoint:
        compare({"x": our_client}, endpoint, [requests(1, "a"), requests(1, "b")], 1, rest_s=0.2)
    ((first, *_), (second, *_)) = (server.sent_s[key] for key in ("a0", "b0"))
    assert second - first > 0.4


def test_a_request_without_an_answer_ends_it() -> None:
    server = KnownServer(refuse=frozenset({"1"}))
    with known_server(server) as endpoint, pytest.raises(ForeignError, match=f"1 of 2 .* {OURS}"):
        compare({}, endpoint, [requests(2)], 1, rest_s=0.0)


def test_a_client_that_fails_says_why() -> None:
    with (
        known_server(KnownServer()) as endpoint,
        pytest.raises(ForeignError, match="ended with status 1"),
    ):
        guidellm_client(shutil.which("false") or "")(endpoint, requests(1), 1)


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("3", "3")])
def test_guidellm_has_one_process_unless_told(
    given: str | None, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "GUIDELLM__MAX_WORKER_PROCESSES"
    monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(name, given)
    program = tmp_path / "guidellm"
    program.write_text(f'#!/bin/sh\necho "workers: ${name}"\nexit 1\n')
    program.chmod(0o755)
    with (
        known_server(KnownServer()) as endpoint,
        pytest.raises(ForeignError, match=f"workers: {used}$"),
    ):
        guidellm_client(str(program))(endpoint, requests(1), 1)


def test_tokens_are_counted_by_the_server_alone() -> None:
    with pytest.raises(ValueError, match="how many tokens"):
        uncounted("some text")


@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_server_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    flags = ["--frames", "8", "--output-len", "4", "--num-prompts", "2", "--rounds", "1"]
    main(["--checkpoint", "cpu-reference", *flags, "--max-concurrency", "2"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    (pair,) = told["pairs"]
    assert pair["client"] == "vllm bench serve"
    assert pair["ours"]["requests_per_s"] > 0
    assert told["configuration"]["checkpoint"] == "cpu-reference"
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "metok_vllm.cli" in child.cmdline()]


def test_one_server_is_named() -> None:
    for flags in ([], ["--base-url", "http://h:1", "--checkpoint", "cpu-reference"]):
        with pytest.raises(SystemExit):
            main(flags)


def test_what_guidellm_is_given(tmp_path: Path) -> None:
    endpoint = Endpoint("x", "http://h:1", "model", extra_body={"metok": {"preset": "max"}})
    asked = requests(3)
    spec = json.loads(foreign_clients.write_scenario(tmp_path, endpoint, asked, 2).read_text())
    assert spec["spec"]["backend"]["extras"]["body"] == {
        "max_tokens": 4,
        "metok": {"preset": "max"},
    }
    assert spec["spec"]["constraints"] == [{"kind": "max_requests", "count": 3}]
    lines = Path(spec["spec"]["data"][0]["path"]).read_text().splitlines()
    assert [json.loads(line)["messages"] for line in lines] == [r.body["messages"] for r in asked]


def test_guidellm_cannot_tell_requests_apart(tmp_path: Path) -> None:
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
    assert foreign_clients.figures({"benchmarks": [{"metrics": metrics}]}) == {
        "answered": 8.0,
        "requests_per_s": 2.0,
        "output_tokens_per_s": 16.0,
        "ttft_s_p50": 0.2,
        "per_output_token_s_p50": 0.05,
        "end_to_end_s_p50": 0.55,
        "ttft_s_mean": 0.25,
        "end_to_end_s_mean": 0.75,
    }
