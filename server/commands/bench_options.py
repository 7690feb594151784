"""The options of `metok bench` and what they mean. Names are those of `vllm bench serve` where the
meaning is the same."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.server.commands.console import CommandError

if TYPE_CHECKING:
    from metok_vllm.benchmarks.throughput.endpoint import Endpoint
    from metok_vllm.benchmarks.throughput.run import Sweep
    from metok_vllm.benchmarks.throughput.workloads import WorkloadSettings

CLIPS = ("cuts", "static", "noise")
PRESETS = ("quality", "balanced", "max")
OUTPUT_LEN, QUALITY_OUTPUT_LEN = 32, 16
DEMO = "demo"
CHECKPOINTS = (DEMO, "cpu-reference", "llava-onevision-7b", "longva-7b")
# Values of headers may be keys; the folder of results says nothing about a figure.
NOT_RECORDED = ("header", "result_dir", "action", "command", "server_pid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything after `metok bench`."""
    commands = parser.add_subparsers(dest="action", metavar="compare A.json B.json")
    compare = commands.add_parser("compare", help="two results side by side")
    compare.add_argument("results", nargs=2, metavar="RESULT.json")
    _add_servers(parser.add_argument_group("servers (one of the first three)"))
    _add_load(parser.add_argument_group("load"))
    _add_workload(parser.add_argument_group("workload"))
    _add_answers(parser.add_argument_group("right answers beside speed"))
    _add_quality(parser.add_argument_group("quality in place of speed"))
    parser.add_argument(
        "--result-dir", help="where results are written (default: metok-bench-<time>)"
    )


def _add_servers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", help="a running server with an OpenAI API")
    group.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        help="start plain vLLM and METok on the demo model or an untrained one of these sizes",
    )
    group.add_argument(
        "--model", help="start both on this model; with --base-url: the name to ask for"
    )
    group.add_argument("--baseline-url", help="with --base-url: the server to compare it with")
    group.add_argument(
        "--extra-body", type=_object, help='joins every request: \'{"metok": {"preset": "max"}}\''
    )
    group.add_argument(
        "--baseline-extra-body",
        type=_object,
        help="the same for the server to compare with; with --base-url alone, that is the same "
        "one. return_token_ids in both bodies compares answers by tokens, not by text",
    )
    group.add_argument(
        "--server-pid", type=int, help="with --base-url on this machine: whose CPU time is counted"
    )
    group.add_argument("--header", action="append", default=[], metavar="KEY=VALUE")
    group.add_argument("--server-flags", default="", help='for both: --server-flags="--dtype half"')
    group.add_argument("--metok-flags", default="", help="for METok's server alone")


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-concurrency", type=int, nargs="+", help="requests in flight (default: 1 8)"
    )
    group.add_argument(
        "--request-rate", type=float, nargs="+", help="arrivals a second, Poisson (default: inf)"
    )
    group.add_argument("--num-prompts", type=int, help="requests a round (default: 4 a slot)")
    group.add_argument("--num-warmups", type=int, help="per server and load (default: up to 4)")
    group.add_argument("--rounds", type=int, default=3, help="in turn (default: 3)")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--timeout", type=float, default=600.0, help="seconds without a byte")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--frames", type=int, nargs="+", default=[64], help="8 to 256 (default: 64)")
    group.add_argument("--clips", nargs="+", choices=CLIPS, default=["cuts"])
    group.add_argument("--video-dir", type=Path, help="your own videos in place of drawn clips")
    group.add_argument("--questions-per-video", type=int, default=1)
    group.add_argument("--videos-in-turn", type=int, default=1)
    group.add_argument("--text-share", type=float, default=0.0, help="of the requests, 0 to 1")
    group.add_argument("--image-share", type=float, default=0.0)
    defaults = f"default: {OUTPUT_LEN}, with --quality at most {QUALITY_OUTPUT_LEN}"
    group.add_argument("--output-len", type=int, help=f"tokens of every answer ({defaults})")


def _add_answers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quality-questions",
        type=int,
        metavar="N",
        help="asked of each server after the rounds, for each of --frames: event-QA with "
        "--checkpoint demo, else those of --quality-folder (default: 32; 0: none)",
    )
    group.add_argument(
        "--quality-folder",
        type=Path,
        metavar="FOLDER",
        help="your own videos and questions.json, for a trained model",
    )


def _add_quality(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quality",
        type=Path,
        metavar="FOLDER",
        help="how near presets come to dense on the videos of this folder, with its questions.json "
        "or questions.txt; takes --frames, --output-len, --seed, one --max-concurrency (else 4)",
    )
    group.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))


def check(arguments: argparse.Namespace) -> None:
    """Raises CommandError (status 2) for options that do not fit together."""
    a = arguments
    if a.base_url is None and (a.checkpoint is None) == (a.model is None):
        raise CommandError("name one of --base-url, --checkpoint and --model", 2)
    if a.base_url is not None and (a.checkpoint or a.server_flags or a.metok_flags):
        raise CommandError(
            "--base-url measures a server that runs: no --checkpoint and no flags for it", 2
        )
    if a.base_url is None and (a.baseline_url or a.header or a.server_pid):
        raise CommandError("--baseline-url, --header and --server-pid go with --base-url", 2)
    for name in ("rounds", "num_prompts", "num_warmups"):
        value, least = getattr(a, name), 0 if name == "num_warmups" else 1
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise CommandError(f"--{option} must be {least} or more, got {value}", 2)
    if a.quality is not None and (a.baseline_url or a.baseline_extra_body or a.extra_body):
        raise CommandError(
            "--quality asks under presets, with dense to compare: no --baseline-url, no bodies", 2
        )
    if a.quality is not None and len(a.max_concurrency or [1]) > 1:
        raise CommandError("--quality takes one --max-concurrency", 2)
    if any("=" not in header for header in a.header):
        raise CommandError("--header takes KEY=VALUE", 2)


def sweep(arguments: argparse.Namespace) -> Sweep:
    """Every concurrency at every rate. Without either: 1 and 8 in flight."""
    from metok_vllm.benchmarks.throughput.load import Load
    from metok_vllm.benchmarks.throughput.run import Sweep

    a = arguments
    rates: Sequence[float] = a.request_rate or [math.inf]
    # With a rate alone nothing bounds what is in flight.
    slots: Sequence[int | None] = a.max_concurrency or ([None] if a.request_rate else [1, 8])
    try:
        loads = tuple(Load(slot, rate, a.seed, a.timeout) for slot in slots for rate in rates)
    except ValueError as error:
        raise CommandError(str(error), 2) from error
    return Sweep(tuple(a.frames), loads, a.num_prompts, a.num_warmups, a.rounds)


def workload_settings(arguments: argparse.Namespace) -> WorkloadSettings:
    """The settings of the workload. Raises ConfigError as they do."""
    from metok_vllm.benchmarks.throughput.workloads import WorkloadSettings

    a = arguments
    return WorkloadSettings(
        seed=a.seed,
        clips=tuple(a.clips),
        folder=a.video_dir,
        frames=tuple(a.frames),
        questions_per_video=a.questions_per_video,
        videos_in_turn=a.videos_in_turn,
        text_share=a.text_share,
        image_share=a.image_share,
        max_tokens=output_len(a),
    )


def given_endpoints(arguments: argparse.Namespace) -> list[Endpoint]:
    """The servers that run already: one, or two where there is something to compare with."""
    from metok_vllm.benchmarks.throughput.endpoint import find_endpoint

    a = arguments
    headers = headers_of(a)
    found = []
    if a.baseline_url is not None or a.baseline_extra_body is not None:
        url, body = a.baseline_url or a.base_url, a.baseline_extra_body
        model = a.model if a.baseline_url is None else None
        found.append(find_endpoint("baseline", url, model=model, extra_body=body, headers=headers))
    server = find_endpoint(
        "server",
        a.base_url,
        model=a.model,
        extra_body=a.extra_body,
        headers=headers,
        pid=a.server_pid,
    )
    return [*found, server]


def output_len(arguments: argparse.Namespace) -> int:
    """Tokens of an answer."""
    if arguments.output_len is not None:
        return int(arguments.output_len)
    return OUTPUT_LEN if arguments.quality is None else QUALITY_OUTPUT_LEN


def server_flags(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Flags for both servers, and for METok's alone."""
    try:
        return shlex.split(arguments.server_flags), shlex.split(arguments.metok_flags)
    except ValueError as error:
        raise CommandError(f"flags that cannot be split into words: {error}", 2) from error


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as the result file keeps them."""
    options = {key: v for key, v in vars(arguments).items() if key not in NOT_RECORDED}
    options["output_len"] = output_len(arguments)
    options["header"] = [header.partition("=")[0] for header in arguments.header]
    return {
        key: value.name if isinstance(value, Path) else value for key, value in options.items()
    } | {"request_rate": [str(rate) for rate in arguments.request_rate or [math.inf]]}


def without_places(command: Sequence[str], model: str) -> list[str]:
    """A server's command from its model on, with folders of this machine by their last name."""
    flags = command[list(command).index(model) :]
    return [Path(f).name if os.sep in f and Path(f).exists() else f for f in flags]


def headers_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The headers of every request."""
    return dict(header.split("=", 1) for header in arguments.header)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value
