"""`metok bench` on servers with known delays."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metok_vllm import cli
from metok_vllm.benchmarks.commands import bench_options, bench_servers, bench_settings
from metok_vllm.benchmarks.throughput import servers
from tests.benchmarks.throughput.openai_server import KnownServer, chunk, known_server, reply

SMALL = ["--frames", "8", "--max-concurrency", "1", "2", "--rounds", "2", "--num-prompts", "2"]
SMALL += ["--text-share", "1", "--num-warmups", "1", "--output-len", "4"]


class AnyQuestion(KnownServer):
    """Accepts the workload's messages: the key is the text of the last part."""

    async def chat(self, body: dict[str, Any], send: Any) -> None:
        content = body["messages"][0]["content"]
        keyed = {**body, "messages": [{"content": content[-1]["text"]}]}
        await super().chat(keyed, send)


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


def test_one_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = AnyQuestion(first_s=0.02, gap_s=0.01)
    folder = tmp_path / "out"
    with known_server(server) as endpoint:
        arguments = ["bench", "--base-url", endpoint.url, *SMALL, "--result-dir", str(folder)]
        options = ["--extra-body", '{"metok": {"preset": "max"}}', "--json"]
        assert cli.main([*arguments, *options]) == 0
    captured = capsys.readouterr()
    short = json.loads(captured.out)
    assert short["benchmark"] == "throughput"
    assert [cell["max_concurrency"] for cell in short["cells"]] == [1, 2]
    assert short["cells"][0]["comparison"] is None
    assert short["cells"][0]["medians"]["server"]["ttft_s_p50"] >= 0.02
    assert short["environment"]["versions"]["metok-vllm"]
    assert "8 frames, 1 in flight, round 2/2, server: " in captured.err
    whole = json.loads((folder / "result.json").read_text())
    assert whole["configuration"]["output_len"] == 4
    assert len(whole["cells"][1]["requests"]["server"]) == 4
    assert (folder / "rounds.csv").read_text().count("\n") == 1 + 2 * 2
    assert all(body["metok"] == {"preset": "max"} for body in server.bodies)
    assert {body["max_tokens"] for body in server.bodies} == {4}


def test_metok_is_started_first_for_half_of_the_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, orders = AnyQuestion(first_s=0.02, gap_s=0.01), []

    @contextmanager
    def pair(*_: Any, metok_first: bool, uncached: bool) -> Iterator[Any]:
        assert not uncached
        orders.append(metok_first)
        with known_server(server) as endpoint:
            process = SimpleNamespace(pid=os.getpid())
            child = SimpleNamespace(url=endpoint.url, process=process)
            command = ("serve", "x")
            yield SimpleNamespace(
                **dict.fromkeys(("plain", "metok"), child),
                **dict.fromkeys(("plain_command", "metok_command"), command),
                uncached=None,
            )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(servers, "pair", pair)
    rested = bench_settings.sweep
    monkeypatch.setattr(bench_settings, "sweep", lambda a: replace(rested(a), rest_s=0.0))
    few = [*SMALL, "--rounds", "3", "--result-dir", str(tmp_path)]
    assert cli.main(["bench", "--model", "x", *few]) == 0
    assert orders == [False, True]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [len(cell["rounds"]) for cell in result["cells"]] == [3, 3]
    ratios = result["cells"][1]["comparison"]["ratios"]
    assert [len(ratio["rounds"]) for ratio in ratios.values()] == [3] * len(ratios)
    assert result["configuration"]["servers_started"] == [
        {"rounds": 2, "first": "plain"},
        {"rounds": 1, "first": "metok"},
    ]
    # Both servers receive each request once, warm-ups included.
    sent = Counter(body["messages"][0]["content"] for body in server.bodies)
    assert set(sent.values()) == {2}
    assert "starting both servers, METok first" in capsys.readouterr().err


def test_plain_vllm_is_measured_with_and_without_its_prefix_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a third server that is not asked for, sent to, recorded or compared."""
    server = AnyQuestion(first_s=0.02, gap_s=0.0, cached_tokens=3)

    @contextmanager
    def pair(*_: Any, metok_first: bool, uncached: bool) -> Iterator[Any]:
        assert (metok_first, uncached) == (False, True)
        with known_server(server) as endpoint:
            child = SimpleNamespace(url=endpoint.url, process=SimpleNamespace(pid=os.getpid()))
            yield SimpleNamespace(
                **dict.fromkeys(("plain", "uncached", "metok"), child),
                plain_command=("serve", "x"),
                uncached_command=("serve", "x", "--off"),
                metok_command=("serve", "x"),
            )

    monkeypatch.setattr(servers, "pair", pair)
    rested = bench_settings.sweep
    monkeypatch.setattr(bench_settings, "sweep", lambda a: replace(rested(a), rest_s=0.0))
    options = ["--frames", "2", "--video-size", "32x32", "--turns", "2", "--num-warmups", "0"]
    options += ["--rounds", "1", "--num-prompts", "2", "--max-concurrency", "2"]
    assert cli.main(["bench", "--model", "x", *options, "--result-dir", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    names = ["plain", "plain-uncached", "metok"]
    assert [endpoint["name"] for endpoint in result["endpoints"]] == names
    assert result["configuration"]["servers"]["plain-uncached"] == ["x", "--off"]
    (cell,) = result["cells"]
    # Two conversations of two turns each, on every server.
    assert [run["sent"] for run in cell["rounds"][0].values()] == [4, 4, 4]
    for name in names:
        assert list(cell["turns"][name]) == ["turn 1", "turn 2"]
        assert cell["turns"][name]["turn 2"]["cached_tokens"]["median"] == 3
    assert cell["comparison"]["plain"] == "plain"
    assert [each["plain"] for each in cell["more_comparisons"]] == ["plain-uncached"]
    printed = capsys.readouterr()
    assert "turn 2: TTFT p50" in printed.out
    assert "metok: times as good as plain-uncached" in printed.out
    assert "starting plain vLLM twice and METok" in printed.err


@pytest.mark.parametrize(
    ("options", "both"),
    [
        ([], False),
        (["--turns", "2"], True),
        (["--reuse-share", "0.5"], True),
        (["--turns", "2", "--baseline-prefix-cache", "on"], False),
        (["--baseline-prefix-cache", "both"], True),
    ],
)
def test_when_a_third_server_starts(options: list[str], both: bool) -> None:
    assert bench_servers.wants_uncached(parsed("--model", "x", *options)) is both


@pytest.mark.parametrize(
    ("options", "gpu", "rounds"),
    [
        (["--model", "x", "--rounds", "1"], False, [(1, False)]),
        (["--model", "x", "--rounds", "4"], False, [(2, False), (2, True)]),
        (["--model", "x", "--rounds", "4"], True, [(4, False)]),
        (["--base-url", "http://h:1", "--rounds", "4"], False, [(4, False)]),
    ],
)
def test_the_order_of_starts(
    options: list[str],
    gpu: bool,
    rounds: list[tuple[int, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = bench_servers.starts(parsed(*options))
    assert [(start.rounds, start.metok_first) for start in found] == rounds


@pytest.mark.thorough
def test_two_servers_and_the_comparison_of_two_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = AnyQuestion(first_s=0.2), AnyQuestion(first_s=0.02)
    with known_server(slow) as one, known_server(fast) as other:
        for name, more in (("a", []), ("b", ["--json"])):
            options = ["--base-url", other.url, "--baseline-url", one.url, *more]
            folder = str(tmp_path / name)
            assert cli.main(["bench", *options, *SMALL, "--result-dir", folder]) == 0
    captured = capsys.readouterr()
    comparison = last_line(captured.out)["cells"][0]["comparison"]
    assert comparison["ratios"]["ttft_s_p50"]["median"] > 3
    assert comparison["agreement"]["exact"] == 1
    assert "100%" in captured.out
    results = [str(tmp_path / name / "result.json") for name in ("a", "b")]
    assert cli.main(["bench", "compare", *results]) == 0
    text = capsys.readouterr().out
    assert "server" in text
    assert "baseline" in text
    assert "100%" in text


def test_one_server_against_itself_with_other_settings() -> None:
    with known_server(AnyQuestion()) as endpoint:
        arguments = parsed(
            "--base-url", endpoint.url, "--baseline-extra-body", '{"metok": {"enabled": false}}'
        )
        one, other = bench_settings.given_endpoints(arguments)
    assert (one.name, other.name, one.url) == ("baseline", "server", other.url)
    assert (one.extra_body, other.extra_body) == ({"metok": {"enabled": False}}, {})


def test_failed_requests_end_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Sometimes(AnyQuestion):
        async def chat(self, body: dict[str, Any], send: Any) -> None:
            if len(self.bodies) == 3:
                self.bodies.append(body)
                await reply(send, 503, {"error": {"message": "draining"}})
                return
            await super().chat(body, send)

    with known_server(Sometimes()) as endpoint:
        arguments = ["bench", "--base-url", endpoint.url, *SMALL, "--result-dir", str(tmp_path)]
        assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert "server: 1 failed: 503: draining" in captured.err
    assert "{" not in captured.out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cells"][0]["medians"]["server"]["answered"] == 1.5


def test_what_was_measured_outlives_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dies(AnyQuestion):
        async def chat(self, body: dict[str, Any], send: Any) -> None:
            if len(self.bodies) == 5:  # a warm-up and two rounds of two: the next is a warm-up
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await chunk(send, {"error": {"message": "engine dead"}})
                await send({"type": "http.response.body"})
                return
            await super().chat(body, send)

    with known_server(Dies()) as endpoint:
        arguments = ["bench", "--base-url", endpoint.url, *SMALL, "--result-dir", str(tmp_path)]
        assert cli.main(arguments) == 1
    assert "a warm-up request to server failed: engine dead" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "result.json").read_text())["cells"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name one of --base-url, --checkpoint and --model"),
        (["--base-url", "http://x", "--checkpoint", "demo"], "a running server"),
        (["--model", "x", "--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--model", "x", "--request-rate", "-1"], "request_rate must be above 0, got -1.0"),
        (["compare", "a.json", "b.json"], "cannot read a.json"),
    ],
)
def test_wrong_calls_end_with_two(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: int | str | None = cli.main(["bench", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_loads_are_every_concurrency_at_every_rate() -> None:
    def loads(*options: str) -> list[tuple[int | None, float]]:
        sweep = bench_settings.sweep(parsed("--model", "x", *options))
        return [(load.max_concurrency, load.request_rate) for load in sweep.loads]

    assert loads() == [(1, float("inf")), (8, float("inf"))]
    assert loads("--request-rate", "2") == [(None, 2)]
    both = loads("--max-concurrency", "4", "8", "--request-rate", "1", "inf")
    assert both == [(4, 1), (4, float("inf")), (8, 1), (8, float("inf"))]


def test_without_aiohttp_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert cli.main(["bench", "--base-url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err == (
        "metok: aiohttp is missing: pip install 'metok-vllm[bench]'\n"
    )


def test_the_record_holds_no_secret_and_no_place(tmp_path: Path) -> None:
    arguments = parsed(
        *("--base-url", "http://x", "--header", "Authorization=secret"),
        *("--video-dir", str(tmp_path / "videos")),
    )
    recorded = json.dumps(bench_settings.recorded(arguments), allow_nan=False)
    assert "secret" not in recorded
    assert str(tmp_path) not in recorded
    assert "Authorization" in recorded
    command = ["/usr/bin/python", "-m", "x", "serve", str(tmp_path), "--dtype", "half"]
    flags = bench_settings.without_places(command, str(tmp_path))
    assert flags == [tmp_path.name, "--dtype", "half"]


def test_the_choices_are_those_of_the_workloads() -> None:
    from metok_vllm.benchmarks.client import videos
    from metok_vllm.benchmarks.throughput import checkpoints

    assert videos.CLIP_KINDS == bench_options.CLIPS
    assert checkpoints.NAMES == bench_options.CHECKPOINTS


def parsed(*options: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    bench_options.add_arguments(parser)
    return parser.parse_args(list(options))
