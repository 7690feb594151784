"""The clients that are compared: ours, `vllm bench serve` and guidellm.

Each is given the same requests and tells its own figures, by our names and in seconds.
"""
# MERGED DOC
# """What the server itself says of a client's turn, beside what the client says of it.
#
# On a machine that is shared a turn may be a fifth slower than the one before, whoever asks. The
# server's histograms at `/metrics` tell how long the requests of just this turn took on its own
# clock, so a client's mean over the server's says how the client counts, free of the hour.
# """
# MERGED DOC
# """What guidellm (0.8) is given, and what it says: its program is installed apart from ours.
#
# Its inter-token time is a request's time after its first token over its other tokens, which we call
# the time per output token; single gaps it does not tell.
# """

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.scrape import Scraper, Scrapes
from metok_vllm.benchmarks.throughput import foreign_guidellm
from metok_vllm.benchmarks.throughput.foreign_vllm import write_requests
from metok_vllm.benchmarks.throughput.load import Load
from metok_vllm.benchmarks.throughput.pairs import RATES, TIMES
from metok_vllm.benchmarks.throughput.run import run_once

OURS = "metok bench"
# Those that others tell too, by the names of our own result.
NAMES = (
    "requests_per_s",
    "output_tokens_per_s",
    "ttft_s_p50",
    "inter_token_s_p50",
    "per_output_token_s_p50",
    "end_to_end_s_p50",
    "ttft_s_mean",
    "end_to_end_s_mean",
)

# A client's figures by name, of one run on a server with so many requests in flight.
Figures = Mapping[str, float]
Client = Callable[[Endpoint, Sequence[BenchRequest], int], Figures]


class ForeignError(Exception):
    """A client that did not come to its end, or whose requests were not all answered."""


def our_client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
    """A round of `metok bench`."""
    run = asyncio.run(run_once(endpoint, requests, Load(concurrency)))
    _all_answered(OURS, run.measures.answered, len(requests), run.measures.errors)
    means = {"ttft_s_mean": run.measures.ttft_s.mean}
    means |= {"end_to_end_s_mean": run.measures.end_to_end_s.mean}
    found = {name: figure(run.measures) for name, figure in (RATES | TIMES).items()} | means
    return {name: value for name in NAMES if (value := found[name]) is not None}


def vllm_client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
    """`vllm bench serve`. Its gaps count a chunk without a token that names the role."""
    with tempfile.TemporaryDirectory(prefix="metok-foreign-") as folder:
        asked, told = Path(folder) / "requests.json", Path(folder) / "result.json"
        write_requests(asked, requests)
        command = [sys.executable, "-m", "metok_vllm.benchmarks.throughput.foreign_vllm"]
        command += [str(asked), "--backend", "openai-chat", "--dataset-name", "custom"]
        command += ["--base-url", endpoint.url, "--endpoint", "/v1/chat/completions"]
        command += ["--model", endpoint.model, "--max-concurrency", str(concurrency)]
        command += ["--extra-body", json.dumps(dict(endpoint.extra_body)), "--disable-tqdm"]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
        _finish([*command, "--result-filename", str(told)])
        result = json.loads(told.read_text())
    _all_answered("vllm bench serve", result["completed"], len(requests), {})
    return {
        "requests_per_s": result["request_throughput"],
        "output_tokens_per_s": result["output_throughput"],
        "ttft_s_p50": result["median_ttft_ms"] / 1000,
        "inter_token_s_p50": result["median_itl_ms"] / 1000,
        "per_output_token_s_p50": result["median_tpot_ms"] / 1000,
        "end_to_end_s_p50": result["median_e2el_ms"] / 1000,
        "ttft_s_mean": result["mean_ttft_ms"] / 1000,
        "end_to_end_s_mean": result["mean_e2el_ms"] / 1000,
    }


def guidellm_client(program: str) -> Client:
    """guidellm, whose command is `program`."""

    def client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
        with tempfile.TemporaryDirectory(prefix="metok-foreign-") as name:
            folder = Path(name)
            scenario = foreign_guidellm.write_scenario(folder, endpoint, requests, concurrency)
            run = [program, "run", "--config", str(scenario), "--disable-console"]
            _finish(run, foreign_guidellm.ONE_PROCESS | os.environ)
            report = json.loads((folder / "report.json").read_text())
        found = foreign_guidellm.figures(report)
        _all_answered("guidellm", int(found.pop("answered")), len(requests), {})
        return found

    return client


def _finish(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a client to its end, with its words kept. Raises ForeignError where it fails."""
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, env=env, **quiet)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ForeignError(f"{Path(command[0]).name} ended with status {done.returncode}:\n{end}")


def _all_answered(name: str, answered: int, sent: int, errors: Mapping[str, int]) -> None:
    if answered != sent:
        raise ForeignError(f"{answered} of {sent} requests of {name} were answered {dict(errors)}")


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


# By default it has a process for each request in flight; the other clients have one, and on few
# cores it is the measured server that pays for the rest. The environment's own value wins.
ONE_PROCESS = {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}


def write_scenario(
    folder: Path, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Path:
    """A scenario that sends the same messages and settings; its report is `report.json` beside.

    Raises ValueError where requests differ in more than their messages: guidellm says the rest
    once for all.
    """
    rest = [{k: v for k, v in request.body.items() if k != "messages"} for request in requests]
    if any(body != rest[0] for body in rest):
        raise ValueError("guidellm sends requests that differ in their messages alone")
    data = folder / "data.jsonl"
    lines = (json.dumps({"messages": r.body["messages"]}) for r in requests)
    data.write_text("\n".join(lines) + "\n")
    scenario = folder / "scenario.json"
    spec = {
        "backend": {
            "kind": "openai_http",
            "target": endpoint.url,
            "model": endpoint.model,
            "validate_backend": False,
            "extras": {"body": rest[0] | dict(endpoint.extra_body)},
        },
        "profile": {"kind": "concurrent", "streams": [concurrency]},
        "constraints": [{"kind": "max_requests", "count": len(requests)}],
        "data": [{"kind": "json_file", "path": str(data)}],
        "outputs": [{"kind": "json", "path": str(folder / "report.json")}],
    }
    scenario.write_text(json.dumps({"spec": spec}))
    return scenario


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report in seconds, by our names; `answered` counts the requests."""
    (benchmark,) = report["benchmarks"]
    metrics = benchmark["metrics"]

    def of(name: str, what: str) -> float:
        spread = metrics[name]["successful"]
        return float(spread["percentiles"][what] if what == "p50" else spread[what])

    return {
        "answered": float(metrics["request_totals"]["successful"]),
        "requests_per_s": of("requests_per_second", "mean"),
        "output_tokens_per_s": of("output_tokens_per_second", "mean"),
        "ttft_s_p50": of("time_to_first_token_ms", "p50") / 1000,
        "per_output_token_s_p50": of("inter_token_latency_ms", "p50") / 1000,
        "end_to_end_s_p50": of("request_latency", "p50"),
        "ttft_s_mean": of("time_to_first_token_ms", "mean") / 1000,
        "end_to_end_s_mean": of("request_latency", "mean"),
    }
