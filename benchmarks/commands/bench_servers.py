"""The servers that `metok bench` measures: running ones, or its own.

Of two equal servers on a small machine, the one started second was up to 1.46 times as fast,
because memory speed varies (docs/benchmarks.md). On a CPU, plain vLLM is therefore started first
for one half of the rounds and METok for the other half.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands import bench_options, bench_settings
from metok_vllm.console import CommandError, complain
from metok_vllm.demo import CONFIG_FILE

if TYPE_CHECKING:
    from metok_vllm.benchmarks.client.endpoint import Endpoint

UNCACHED = "plain-uncached"


@dataclass(frozen=True)
class Start:
    """A number of rounds on servers that were started in one order."""

    rounds: int
    metok_first: bool = False


Serve = Callable[[Start], AbstractContextManager[Sequence["Endpoint"]]]


def starts(arguments: argparse.Namespace) -> tuple[Start, ...]:
    """The starts of the servers with their rounds; an odd round has plain vLLM first."""
    import torch

    rounds: int = arguments.rounds
    if arguments.base_url is not None or rounds < 2 or torch.cuda.is_available():
        return (Start(rounds),)
    later = rounds // 2
    return (Start(rounds - later), Start(later, metok_first=True))


def wants_uncached(arguments: argparse.Namespace) -> bool:
    """Whether plain vLLM is also measured without its prefix cache."""
    shares = arguments.turns > 1 or arguments.reuse_share > 0
    asked = arguments.baseline_prefix_cache or ("both" if shares else "on")
    return arguments.base_url is None and asked == "both"


def with_other_answers(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """All but plain vLLM without its prefix cache, which gives plain vLLM's answers."""
    return [endpoint for endpoint in endpoints if endpoint.name != UNCACHED]


@contextmanager
def serving(arguments: argparse.Namespace, configuration: dict[str, Any]) -> Iterator[Serve]:
    """Yield a function that provides the servers of a start, the one to compare with first.

    Its own servers end with its context. Their flags are added to `configuration`.
    """
    if arguments.base_url is not None:
        yield lambda start: nullcontext(bench_settings.given_endpoints(arguments))
        return
    try:
        from metok_vllm.benchmarks.throughput import checkpoints, launch
    except ModuleNotFoundError as error:
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error
    flags, metok_flags = bench_settings.server_flags(arguments)
    configuration["servers_environment"] = launch.recorded()
    configuration["servers_started"] = [
        {"rounds": start.rounds, "first": "metok" if start.metok_first else "plain"}
        for start in starts(arguments)
    ]
    with ExitStack() as stack:
        model = arguments.model
        if arguments.checkpoint is not None:
            made = stack.enter_context(checkpoints.checkpoint(arguments.checkpoint))
            model, flags = made.model, [*made.flags, *flags]
            metok_flags = [*made.metok_flags, *metok_flags]
        if arguments.checkpoint == bench_options.DEMO:
            # The calibrated layers, as in `metok serve --demo`. A file of the user comes later and
            # has priority.
            metok_flags = ["--metok-config", str(CONFIG_FILE), *metok_flags]
        yield partial(_started, arguments, configuration, model, flags, metok_flags)


@contextmanager
def _started(
    arguments: argparse.Namespace,
    configuration: dict[str, Any],
    model: str,
    flags: Sequence[str],
    metok_flags: Sequence[str],
    start: Start,
) -> Iterator[Sequence[Endpoint]]:
    from metok_vllm.benchmarks.client.endpoint import find_endpoint
    from metok_vllm.benchmarks.throughput import servers

    uncached = wants_uncached(arguments)
    servers_named = "plain vLLM twice and METok" if uncached else "both servers"
    complain(f"starting {servers_named}, {'METok' if start.metok_first else 'plain vLLM'} first")
    started = servers.pair(
        model, flags, metok_flags, metok_first=start.metok_first, uncached=uncached
    )
    with started as found:
        rivals = [
            ("plain", found.plain, found.plain_command, arguments.baseline_extra_body),
            ("metok", found.metok, found.metok_command, arguments.extra_body),
        ]
        if found.uncached is not None:
            command = found.uncached_command
            rivals.insert(1, (UNCACHED, found.uncached, command, arguments.baseline_extra_body))
        configuration["servers"] = {
            name: bench_settings.without_places(command, model) for name, _, command, _ in rivals
        }
        yield [
            find_endpoint(name, child.url, extra_body=body, pid=child.process.pid)
            for name, child, _, body in rivals
        ]
