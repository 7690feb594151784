"""Our figures compared with those of other clients, on one server under the same load.

    python -m metok_vllm.benchmarks.throughput.foreign --checkpoint cpu-reference
    python -m metok_vllm.benchmarks.throughput.foreign --base-url http://127.0.0.1:8000

`vllm bench serve` sends the same requests with the same bytes, and so does guidellm if
`--guidellm` names its program. The clients take turns in every round, so that disturbances of the
machine affect all of them. The rounds use all orders of the clients. Each client's means are
also compared with the server's own for its turn. The server's caches must be off, as they are on a
server that this program starts: a later client would profit from an earlier one.
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
from functools import partial
from itertools import cycle, islice, permutations
from typing import Any

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint, find_endpoint
from metok_vllm.benchmarks.client.workloads import WorkloadSettings, workload
from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.throughput import launch
from metok_vllm.benchmarks.throughput.checkpoints import ALL_SIZES, checkpoint
from metok_vllm.benchmarks.throughput.foreign_clients import (
    NAMES,
    OURS,
    OVER_SERVERS,
    Client,
    Figures,
    guidellm_client,
    our_client,
    vllm_client,
    with_server_clock,
)
from metok_vllm.benchmarks.throughput.load import Load, warm_up
from metok_vllm.benchmarks.throughput.run import REST_S

CACHES_OFF = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")


@dataclass(frozen=True)
class ClientComparison:
    """One client compared with ours at one concurrency.

    `ours` and `theirs` are medians over the rounds, `differences` each round's `theirs / ours - 1`
    and `difference` their median. Figures that the client does not report are missing. `rounds`
    has both clients' figures of every round, to explain outliers.
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
) -> list[ClientComparison]:
    """Every client in turn, once for each of `rounds` and its requests.

    The rounds use all orders, so that neither a slowing machine nor a client's after-effects favour
    one client. The server rests for `rest_s` seconds before each turn. Raises ForeignError if a
    request is not answered.
    """
    turns = {OURS: our_client, **clients}
    reported: dict[str, list[Figures]] = {name: [] for name in turns}
    for requests, order in zip(rounds, cycle(permutations(turns)), strict=False):
        for name in order:
            time.sleep(rest_s)
            client = with_server_clock(turns[name])
            reported[name].append(client(endpoint, requests, concurrency))
    ours = reported.pop(OURS)
    return [compare_figures(name, concurrency, ours, theirs) for name, theirs in reported.items()]


def compare_figures(
    client: str, concurrency: int, ours: Sequence[Figures], theirs: Sequence[Figures]
) -> ClientComparison:
    """Medians of both clients' figures, and their differences in each round."""
    names = [n for n in NAMES + OVER_SERVERS if all(n in figures for figures in (*ours, *theirs))]
    pairs = list(zip(ours, theirs, strict=True))
    differences = {n: [their[n] / our[n] - 1 for our, their in pairs] for n in names}
    return ClientComparison(
        client,
        concurrency,
        ours={name: statistics.median(our[name] for our in ours) for name in names},
        theirs={name: statistics.median(their[name] for their in theirs) for name in names},
        difference={name: statistics.median(values) for name, values in differences.items()},
        differences=differences,
        rounds=[{"ours": dict(our), "theirs": dict(their)} for our, their in pairs],
    )


def table(found: Sequence[ClientComparison]) -> str:
    """Markdown: both figures, the median difference and its range over rounds."""
    lines = ["| client | in flight | figure | ours | theirs | difference |", "|---|" + "---|" * 5]
    for pair in found:
        for name, difference in pair.difference.items():
            of_rounds = pair.differences[name]
            figures = f"{pair.ours[name]:.4g} | {pair.theirs[name]:.4g} | {100 * difference:+.1f} %"
            figures += f" ({100 * min(of_rounds):+.1f} to {100 * max(of_rounds):+.1f})"
            lines.append(f"| {pair.client} | {pair.concurrency} | {name} | {figures} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparison, then print the table and the result as one line of JSON."""
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
    """The address of the given server, or of a METok server that runs on a checkpoint."""
    if base_url is not None:
        yield base_url
        return
    from metok_vllm.benchmarks.throughput import servers

    assert name is not None  # the parser requires one of both
    with (
        checkpoint(name) as made,
        servers.metok_server(made.model, (*made.flags, *CACHES_OFF), made.metok_flags) as server,
    ):
        yield server.url


def _compare_all(endpoint: Endpoint, args: argparse.Namespace) -> list[ClientComparison]:
    settings = WorkloadSettings(
        seed=args.seed, frames=(args.frames,), max_tokens=args.output_len, seconds_per_frame=0.5
    )
    stream = workload(settings)
    clients: dict[str, Client] = {"vllm bench serve": vllm_client}
    if args.guidellm:
        clients["guidellm"] = partial(guidellm_client, args.guidellm)
    found: list[ClientComparison] = []
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
        "--checkpoint", choices=sorted(ALL_SIZES), help="start a METok server on this checkpoint"
    )
    parser.add_argument("--model")
    parser.add_argument("--guidellm", metavar="PROGRAM", help="the command of guidellm")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--max-concurrency", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
