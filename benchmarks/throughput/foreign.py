"""Our figures beside those of other clients, on one server under the same load.

    python -m metok_vllm.benchmarks.throughput.foreign --checkpoint cpu-reference
    python -m metok_vllm.benchmarks.throughput.foreign --base-url http://127.0.0.1:8000

`vllm bench serve` sends the same requests, byte for byte the same videos, and guidellm too where
its program is named with `--guidellm`. The clients take turns in each round, so that what disturbs
the machine disturbs all of them. Caches must be off at the server (one that this program starts
has them off): the second client to ask would find what the first one left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.throughput import foreign_guidellm
from metok_vllm.benchmarks.throughput.endpoint import Endpoint, find_endpoint
from metok_vllm.benchmarks.throughput.foreign_vllm import write_requests
from metok_vllm.benchmarks.throughput.load import Load, warm_up
from metok_vllm.benchmarks.throughput.pairs import RATES, TIMES
from metok_vllm.benchmarks.throughput.request import BenchRequest
from metok_vllm.benchmarks.throughput.run import run_once
from metok_vllm.benchmarks.throughput.workloads import WorkloadSettings, workload
from metok_vllm.server.commands.bench_options import CHECKPOINTS, DEMO

OURS = "metok bench"
CACHES_OFF = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")
# Those that others tell too, by the names of our own result.
NAMES = (
    "requests_per_s",
    "output_tokens_per_s",
    "ttft_s_p50",
    "inter_token_s_p50",
    "per_output_token_s_p50",
    "end_to_end_s_p50",
)

# A client's figures by name, of one run on a server with so many requests in flight.
Figures = Mapping[str, float]
Client = Callable[[Endpoint, Sequence[BenchRequest], int], Figures]


class ForeignError(Exception):
    """A client that did not come to its end, or whose requests were not all answered."""


@dataclass(frozen=True)
class Beside:
    """One client against ours at one concurrency.

    `ours` and `theirs` are medians over the rounds, `difference` the median of the rounds' own
    `theirs / ours - 1`; a figure that the client does not tell is not there.
    """

    client: str
    concurrency: int
    ours: Figures
    theirs: Figures
    difference: Figures


def our_client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
    """A round of `metok bench`."""
    run = asyncio.run(run_once(endpoint, requests, Load(concurrency)))
    _all_answered(OURS, run.measures.answered, len(requests), run.measures.errors)
    found = {name: (RATES | TIMES)[name](run.measures) for name in NAMES}
    return {name: value for name, value in found.items() if value is not None}


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
    }


def guidellm_client(program: str) -> Client:
    """guidellm, whose command is `program`."""

    def client(endpoint: Endpoint, requests: Sequence[BenchRequest], concurrency: int) -> Figures:
        with tempfile.TemporaryDirectory(prefix="metok-foreign-") as name:
            folder = Path(name)
            scenario = foreign_guidellm.write_scenario(folder, endpoint, requests, concurrency)
            _finish([program, "run", "--config", str(scenario), "--disable-console"])
            report = json.loads((folder / "report.json").read_text())
        found = foreign_guidellm.figures(report)
        _all_answered("guidellm", int(found.pop("answered")), len(requests), {})
        return found

    return client


def compare(
    clients: Mapping[str, Client],
    endpoint: Endpoint,
    rounds: Sequence[Sequence[BenchRequest]],
    concurrency: int,
) -> list[Beside]:
    """Every client in turn, once for each of `rounds` and its requests.

    Whoever was first is last in the next round: a machine that gets slower favours nobody.
    Raises ForeignError where a request was not answered.
    """
    turns = [(OURS, our_client), *clients.items()]
    told: dict[str, list[Figures]] = {name: [] for name, _ in turns}
    for requests in rounds:
        for name, client in turns:
            told[name].append(client(endpoint, requests, concurrency))
        turns = [*turns[1:], turns[0]]
    ours = told.pop(OURS)
    return [beside(name, concurrency, ours, theirs) for name, theirs in told.items()]


def beside(
    client: str, concurrency: int, ours: Sequence[Figures], theirs: Sequence[Figures]
) -> Beside:
    """Medians of both and of their differences round by round."""
    names = [name for name in NAMES if name in theirs[0] and name in ours[0]]

    def median(values: Callable[[Figures, Figures, str], float]) -> dict[str, float]:
        pairs = list(zip(ours, theirs, strict=True))
        return {n: statistics.median(values(our, their, n) for our, their in pairs) for n in names}

    return Beside(
        client,
        concurrency,
        ours=median(lambda our, _, name: our[name]),
        theirs=median(lambda _, their, name: their[name]),
        difference=median(lambda our, their, name: their[name] / our[name] - 1),
    )


def table(found: Sequence[Beside]) -> str:
    """Markdown: both figures and their difference."""
    lines = ["| client | in flight | figure | ours | theirs | difference |", "|---|" + "---|" * 5]
    for pair in found:
        for name, difference in pair.difference.items():
            figures = f"{pair.ours[name]:.4g} | {pair.theirs[name]:.4g} | {100 * difference:+.1f} %"
            lines.append(f"| {pair.client} | {pair.concurrency} | {name} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, print the table and the whole as one line of JSON."""
    args = _parser().parse_args(argv)
    with _server(args.base_url, args.checkpoint) as url:
        endpoint = find_endpoint("server", url, model=args.model)
        found = _compare_all(endpoint, args)
    print(table(found))
    head: dict[str, Any] = record_head("foreign clients", 1, environment(), vars(args))
    print(json.dumps(head | {"load_average": os.getloadavg(), "pairs": [*map(asdict, found)]}))


@contextmanager
def _server(base_url: str | None, name: str | None) -> Iterator[str]:
    """The address of the given server, or of a METok server on a checkpoint while it runs."""
    if base_url is not None:
        yield base_url
        return
    from metok_vllm.benchmarks.throughput import checkpoints, servers
    from metok_vllm.server.commands.child_server import ChildServer

    assert name is not None  # the parser wants one of both
    with servers.ended_by_signals(), checkpoints.checkpoint(name) as made:
        flags = (made.model, *made.flags, *CACHES_OFF, *made.metok_flags)
        command = (*servers.METOK_SERVE, *flags, *servers.REQUESTS_SAY, *servers.WITHOUT_LIMITS)
        with ChildServer(command) as server:
            server.wait_until_ready(servers.READY_S)
            yield server.url


def _compare_all(endpoint: Endpoint, args: argparse.Namespace) -> list[Beside]:
    settings = WorkloadSettings(
        seed=args.seed, frames=(args.frames,), max_tokens=args.output_len, seconds_per_frame=0.5
    )
    stream = workload(settings)
    clients: dict[str, Client] = {"vllm bench serve": vllm_client}
    if args.guidellm:
        clients["guidellm"] = guidellm_client(args.guidellm)
    found: list[Beside] = []
    for concurrency in args.max_concurrency:
        asyncio.run(warm_up(endpoint, list(islice(stream, concurrency)), Load(concurrency)))
        rounds = [list(islice(stream, args.num_prompts)) for _ in range(args.rounds)]
        found += compare(clients, endpoint, rounds, concurrency)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--base-url")
    sizes = [name for name in CHECKPOINTS if name != DEMO]
    server.add_argument("--checkpoint", choices=sizes, help="a METok server is started on it")
    parser.add_argument("--model")
    parser.add_argument("--guidellm", metavar="PROGRAM", help="guidellm's command")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--max-concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _finish(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ForeignError(f"{Path(command[0]).name} ended with status {done.returncode}:\n{end}")


def _all_answered(name: str, answered: int, sent: int, errors: Mapping[str, int]) -> None:
    if answered != sent:
        raise ForeignError(f"{answered} of {sent} requests of {name} were answered {dict(errors)}")


if __name__ == "__main__":
    main()
