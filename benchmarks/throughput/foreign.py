"""Our figures beside those of other clients, on one server under the same load.

    python -m metok_vllm.benchmarks.throughput.foreign --checkpoint cpu-reference
    python -m metok_vllm.benchmarks.throughput.foreign --base-url http://127.0.0.1:8000

`vllm bench serve` sends the same requests, byte for byte the same videos, and guidellm too where
its program is named with `--guidellm`. The clients take turns in each round, so that what disturbs
the machine disturbs all of them, in all orders, so that nobody always follows the same other.
Each client's means are also held against the server's own of just its turn (`foreign_clock`).
Caches must be off at the server (one that this program starts has them off): the second client to
ask would find what the first one left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice, permutations
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint, find_endpoint
from metok_vllm.benchmarks.client.workloads import WorkloadSettings, workload
from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.throughput import launch
from metok_vllm.benchmarks.throughput.checkpoints import SIZES, checkpoint
from metok_vllm.benchmarks.throughput.foreign_clients import (
    NAMES,
    OURS,
    OVER_SERVERS,
    Client,
    Figures,
    beside_the_server,
    guidellm_client,
    our_client,
    vllm_client,
)
from metok_vllm.benchmarks.throughput.load import Load, warm_up
from metok_vllm.benchmarks.throughput.run import REST_S

CACHES_OFF = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")


@dataclass(frozen=True)
class Beside:
    """One client against ours at one concurrency.

    `ours` and `theirs` are medians over the rounds, `differences` each round's own
    `theirs / ours - 1` and `difference` their median; a figure that the client does not tell is
    not there. `rounds` has both clients' figures of every round, for who asks what a round far
    from the others was like.
    """

    client: str
    concurrency: int
    ours: Figures
    theirs: Figures
    difference: Figures
    differences: Mapping[str, Sequence[float]]
    rounds: Sequence[Mapping[str, Figures]]


def compare(
    clients: Mapping[str, Client],
    endpoint: Endpoint,
    rounds: Sequence[Sequence[BenchRequest]],
    concurrency: int,
    rest_s: float = REST_S,
) -> list[Beside]:
    """Every client in turn, once for each of `rounds` and its requests.

    The rounds go through all orders: neither a machine that gets slower nor what a client leaves
    behind favours one of them. Before each turn the server rests for `rest_s` seconds.
    Raises ForeignError where a request was not answered.
    """
    turns = {OURS: our_client, **clients}
    told: dict[str, list[Figures]] = {name: [] for name in turns}
    for requests, order in zip(rounds, cycle(permutations(turns)), strict=False):
        for name in order:
            time.sleep(rest_s)
            client = beside_the_server(turns[name])
            told[name].append(client(endpoint, requests, concurrency))
    ours = told.pop(OURS)
    return [beside(name, concurrency, ours, theirs) for name, theirs in told.items()]


def beside(
    client: str, concurrency: int, ours: Sequence[Figures], theirs: Sequence[Figures]
) -> Beside:
    """Medians of both and of their differences round by round."""
    names = [n for n in NAMES + OVER_SERVERS if all(n in told for told in (*ours, *theirs))]
    pairs = list(zip(ours, theirs, strict=True))
    differences = {n: [their[n] / our[n] - 1 for our, their in pairs] for n in names}
    return Beside(
        client,
        concurrency,
        ours={name: statistics.median(our[name] for our in ours) for name in names},
        theirs={name: statistics.median(their[name] for their in theirs) for name in names},
        difference={name: statistics.median(values) for name, values in differences.items()},
        differences=differences,
        rounds=[{"ours": dict(our), "theirs": dict(their)} for our, their in pairs],
    )


def table(found: Sequence[Beside]) -> str:
    """Markdown: both figures, their difference and how far the rounds' own lie apart."""
    lines = ["| client | in flight | figure | ours | theirs | difference |", "|---|" + "---|" * 5]
    for pair in found:
        for name, difference in pair.difference.items():
            of_rounds = pair.differences[name]
            figures = f"{pair.ours[name]:.4g} | {pair.theirs[name]:.4g} | {100 * difference:+.1f} %"
            figures += f" ({100 * min(of_rounds):+.1f} to {100 * max(of_rounds):+.1f})"
            lines.append(f"| {pair.client} | {pair.concurrency} | {name} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, print the table and the whole as one line of JSON."""
    args = _parser().parse_args(argv)
    with _server(args.base_url, args.checkpoint) as url:
        endpoint = find_endpoint("server", url, model=args.model)
        found = _compare_all(endpoint, args)
    print(table(found))
    configuration: dict[str, Any] = dict(vars(args))
    if args.checkpoint:
        configuration["server_environment"] = launch.recorded()
    head: dict[str, Any] = record_head("foreign clients", 1, environment(), configuration)
    print(json.dumps(head | {"load_average": os.getloadavg(), "pairs": [*map(asdict, found)]}))


@contextmanager
def _server(base_url: str | None, name: str | None) -> Iterator[str]:
    """The address of the given server, or of a METok server on a checkpoint while it runs."""
    if base_url is not None:
        yield base_url
        return
    from metok_vllm.benchmarks.throughput import servers
    from metok_vllm.processes.child_server import ChildServer

    assert name is not None  # the parser wants one of both
    with servers.ended_by_signals(), checkpoint(name) as made:
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
    server.add_argument(
        "--checkpoint", choices=sorted(SIZES), help="a METok server is started on it"
    )
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
