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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.throughput.endpoint import Endpoint, find_endpoint
from metok_vllm.benchmarks.throughput.foreign_clients import (
    NAMES,
    OURS,
    Client,
    Figures,
    guidellm_client,
    our_client,
    vllm_client,
)
from metok_vllm.benchmarks.throughput.load import Load, warm_up
from metok_vllm.benchmarks.throughput.request import BenchRequest
from metok_vllm.benchmarks.throughput.workloads import WorkloadSettings, workload
from metok_vllm.server.commands.bench_options import CHECKPOINTS, DEMO

CACHES_OFF = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")


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


if __name__ == "__main__":
    main()
