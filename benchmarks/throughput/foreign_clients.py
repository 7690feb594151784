"""The compared clients: ours, `vllm bench serve` and guidellm 0.8.

Each sends the same requests and returns its own figures, by our names and in seconds. guidellm is
installed in an environment of its own. Its inter-token time is our time per output token; it does
not report single gaps.

On a shared machine one turn may be a fifth slower than the last. The server's histograms measure
each turn on the server's clock. The ratio of a client's mean to the server's therefore depends on
the client alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from metok_vllm.benchmarks.client.scrape import Scraper, Scrapes
from metok_vllm.benchmarks.throughput.foreign_vllm import write_requests
from metok_vllm.benchmarks.throughput.load import Load
from metok_vllm.benchmarks.throughput.run import run_once

OURS = "metok bench"
# The figures of our result that other clients report as well.
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
# A client's mean, the server's histogram of the same time, and the name of their ratio.
CLOCKS = (
    ("ttft_s_mean", "vllm:time_to_first_token_seconds", "ttft_over_servers"),
    ("end_to_end_s_mean", "vllm:e2e_request_latency_seconds", "end_to_end_over_servers"),
)
OVER_SERVERS = tuple(over for _, _, over in CLOCKS)
# By default guidellm has a process for each request in flight, which takes cores from the server.
# The environment's own value has priority.
ONE_PROCESS = {"GUIDELLM__MAX_WORKER_PROCESSES": "1"}

Figures = Mapping[str, float]
# Sends the requests with a concurrency and returns its figures by name.
Client = Callable[[Endpoint, Sequence[BenchRequest], int], Figures]


class ForeignError(Exception):
    """A client failed, or not all of its requests were answered."""


def our_client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
    """A round of `metok bench`."""
    run = asyncio.run(run_once(endpoint, requests, Load(concurrency)))
    _all_answered(OURS, run.measures.answered, len(requests), run.measures.errors)
    found = run.measures.rates() | run.measures.times()
    found |= {"ttft_s_mean": run.measures.ttft_s.mean}
    found |= {"end_to_end_s_mean": run.measures.end_to_end_s.mean}
    return {name: value for name in NAMES if (value := found[name]) is not None}


def vllm_client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
    """`vllm bench serve`. Its gaps include the first chunk, which has the role and no token."""
    with tempfile.TemporaryDirectory(prefix="metok-foreign-") as folder:
        bodies, saved = Path(folder) / "requests.json", Path(folder) / "result.json"
        write_requests(bodies, requests)
        command = [sys.executable, "-m", "metok_vllm.benchmarks.throughput.foreign_vllm"]
        command += [str(bodies), "--backend", "openai-chat", "--dataset-name", "custom"]
        command += ["--base-url", endpoint.url, "--endpoint", "/v1/chat/completions"]
        command += ["--model", endpoint.model, "--max-concurrency", str(concurrency)]
        command += ["--extra-body", json.dumps(dict(endpoint.extra_body)), "--disable-tqdm"]
        command += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result"]
        _finish([*command, "--result-filename", str(saved)])
        result = json.loads(saved.read_text())
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


def guidellm_client(
    program: str, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Figures:
    """guidellm, whose command is `program`."""
    with tempfile.TemporaryDirectory(prefix="metok-foreign-") as name:
        folder = Path(name)
        scenario = write_scenario(folder, endpoint, requests, concurrency)
        run = [program, "run", "--config", str(scenario), "--disable-console"]
        _finish(run, ONE_PROCESS | os.environ)
        report = json.loads((folder / "report.json").read_text())
    found = guidellm_figures(report)
    _all_answered("guidellm", int(found.pop("answered")), len(requests), {})
    return found


def write_scenario(
    folder: Path, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Path:
    """Write guidellm's scenario for the same requests; its report is `report.json` in `folder`.

    Raises ValueError if bodies differ beside their messages, since guidellm has one body for all.
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


def guidellm_figures(report: Mapping[str, Any]) -> dict[str, float]:
    """The figures of guidellm's report in seconds, by our names; `answered` counts requests."""
    (benchmark,) = report["benchmarks"]
    metrics = benchmark["metrics"]
    spread = {
        name: metrics[name]["successful"]
        for name in (
            "requests_per_second",
            "output_tokens_per_second",
            "time_to_first_token_ms",
            "inter_token_latency_ms",
            "request_latency",
        )
    }
    p50 = {name: float(values["percentiles"]["p50"]) for name, values in spread.items()}
    mean = {name: float(values["mean"]) for name, values in spread.items()}
    return {
        "answered": float(metrics["request_totals"]["successful"]),
        "requests_per_s": mean["requests_per_second"],
        "output_tokens_per_s": mean["output_tokens_per_second"],
        "ttft_s_p50": p50["time_to_first_token_ms"] / 1000,
        "per_output_token_s_p50": p50["inter_token_latency_ms"] / 1000,
        "end_to_end_s_p50": p50["request_latency"],
        "ttft_s_mean": mean["time_to_first_token_ms"] / 1000,
        "end_to_end_s_mean": mean["request_latency"],
    }


def with_server_clock(client: Client) -> Client:
    """The client with the ratios of its means to the server's among its figures.

    A ratio is missing if the client or the server does not report the time, or if the server
    counted other requests during the turn.
    """
    return partial(_turn, client)


def _turn(
    client: Client, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Figures:
    return asyncio.run(_measured_turn(client, endpoint, requests, concurrency))


async def _measured_turn(
    client: Client, endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int
) -> Figures:
    async with Scraper(endpoint, time.perf_counter, during=False) as scraper:
        # Each client has its own event loop or process.
        figures = await asyncio.to_thread(client, endpoint, requests, concurrency)
        await scraper.finish(len(requests))
    return dict(figures) | _over_servers(figures, scraper.scrapes, len(requests))


def _over_servers(figures: Figures, scrapes: Scrapes, answered: int) -> dict[str, float]:
    found = {}
    for mean, histogram, over in CLOCKS:
        count, seconds = scrapes.rise(f"{histogram}_count"), scrapes.rise(f"{histogram}_sum")
        if mean in figures and count == answered and seconds:
            found[over] = figures[mean] * count / seconds
    return found


def _finish(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a client to its end with captured output. Raises ForeignError if it fails."""
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(command, env=env, **quiet)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ForeignError(f"{Path(command[0]).name} ended with status {done.returncode}:\n{end}")


def _all_answered(name: str, answered: int, sent: int, errors: Mapping[str, int]) -> None:
    if answered != sent:
        raise ForeignError(f"{answered} of {sent} requests of {name} were answered {dict(errors)}")
