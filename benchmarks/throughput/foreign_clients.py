"""The clients that are compared: ours, `vllm bench serve` and guidellm.

Each is given the same requests and tells its own figures, by our names and in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.request import BenchRequest
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
