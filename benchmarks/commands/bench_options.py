"""The options of `metok bench`. Those that `vllm bench serve` also has share its names."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from metok_vllm.console import CommandError

CLIPS = ("cuts", "static", "noise")
PRESETS = ("quality", "balanced", "max")
OUTPUT_LEN, QUALITY_OUTPUT_LEN = 32, 16
WIDTH, HEIGHT = 320, 240
DEMO = "demo"
CHECKPOINTS = (
    *(DEMO, "cpu-reference", "llava-onevision-7b", "longva-7b"),
    *("cpu-qwen3-vl", "qwen2.5-vl-7b", "qwen3-vl-8b"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options after `metok bench`."""
    commands = parser.add_subparsers(dest="action", metavar="compare A.json B.json")
    compare = commands.add_parser("compare", help="two results side by side")
    compare.add_argument("results", nargs=2, metavar="RESULT.json")
    _add_servers(parser.add_argument_group("servers (one of the first three)"))
    _add_load(parser.add_argument_group("load"))
    _add_workload(parser.add_argument_group("workload"))
    _add_accuracy(parser.add_argument_group("accuracy after the load"))
    _add_quality(parser.add_argument_group("quality in place of speed"))
    parser.add_argument(
        "--result-dir", help="where results are written (default: metok-bench-<time>)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as a line of JSON, without tables"
    )


def _add_servers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", help="a running server with an OpenAI API")
    group.add_argument(
        "--checkpoint",
        choices=CHECKPOINTS,
        help="start plain vLLM and METok on the demo model or an untrained one of these sizes",
    )
    group.add_argument(
        "--model", help="start both on this model; with --base-url: the served model name"
    )
    group.add_argument("--baseline-url", help="with --base-url: the server to compare it with")
    group.add_argument(
        "--extra-body",
        type=_object,
        help='fields for every request: \'{"metok": {"preset": "max"}}\'',
    )
    group.add_argument(
        "--baseline-extra-body",
        type=_object,
        help="the same for the server to compare with, which is --base-url unless --baseline-url "
        "is given; return_token_ids in both bodies compares answers by tokens, not by text",
    )
    group.add_argument(
        "--server-pid", type=int, help="with a local --base-url: the server's process, for CPU time"
    )
    group.add_argument("--header", action="append", default=[], metavar="KEY=VALUE")
    group.add_argument("--server-flags", default="", help='for both: --server-flags="--dtype half"')
    group.add_argument("--metok-flags", default="", help="for METok's server alone")
    group.add_argument(
        "--baseline-prefix-cache",
        choices=("on", "both"),
        help="both: plain vLLM is measured a second time without its prefix cache, on a third "
        "server (default: both with --turns or --reuse-share, else on)",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-concurrency", type=int, nargs="+", help="requests in flight (default: 1 8)"
    )
    group.add_argument(
        "--request-rate", type=float, nargs="+", help="arrivals a second, Poisson (default: inf)"
    )
    group.add_argument(
        "--num-prompts",
        type=int,
        help="requests or conversations a round (default: 4 per one in flight)",
    )
    group.add_argument("--num-warmups", type=int, help="per server and load (default: up to 4)")
    group.add_argument(
        "--rounds",
        type=int,
        default=4,
        help="for each load; METok's server is started first for half of them (default: 4)",
    )
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--timeout", type=float, default=600.0, help="seconds without a byte")


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--frames", type=int, nargs="+", default=[64], help="default: 64; drawn clips: 8 to 256"
    )
    group.add_argument("--clips", nargs="+", choices=CLIPS, default=["cuts"])
    group.add_argument("--video-dir", type=Path, help="your own videos in place of drawn clips")
    group.add_argument(
        "--video-size",
        type=_size,
        metavar="WxH",
        help=f"of drawn clips (default: {WIDTH}x{HEIGHT})",
    )
    group.add_argument("--video-fps", type=int, default=4, help="of drawn clips (default: 4)")
    group.add_argument("--questions-per-video", type=int, default=1)
    group.add_argument("--videos-in-turn", type=int, default=1)
    group.add_argument(
        "--turns",
        type=int,
        default=1,
        help="questions of a conversation about a video, with the answers so far (default: 1)",
    )
    group.add_argument(
        "--reuse-share",
        type=float,
        default=0.0,
        help="of the video requests: about a video of an earlier request (0.2, 0.5, 0.8)",
    )
    group.add_argument(
        "--reuse-pool", type=int, default=4, help="videos that are asked about again (default: 4)"
    )
    group.add_argument("--text-share", type=float, default=0.0, help="of the requests, 0 to 1")
    group.add_argument("--image-share", type=float, default=0.0)
    defaults = f"default: {OUTPUT_LEN}, with --quality at most {QUALITY_OUTPUT_LEN}"
    group.add_argument("--output-len", type=int, help=f"tokens of every answer ({defaults})")


def _add_accuracy(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quality-questions",
        type=int,
        metavar="N",
        help="for each server after the rounds, for each of --frames: event-QA with "
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
        help="compare presets with dense on the videos of this folder, with its questions.json or "
        "questions.txt; uses --frames, --output-len, --seed, one --max-concurrency (default: 4)",
    )
    group.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))


def check(arguments: argparse.Namespace) -> None:
    """Raises CommandError (status 2) for options that do not fit together."""
    a = arguments
    if a.base_url is None and (a.checkpoint is None) == (a.model is None):
        raise CommandError("name one of --base-url, --checkpoint and --model", 2)
    if a.base_url is not None and (a.checkpoint or a.server_flags or a.metok_flags):
        raise CommandError(
            "--base-url measures a running server: no --checkpoint and no flags for it", 2
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
            "--quality compares presets with dense: no --baseline-url and no bodies", 2
        )
    if a.quality is not None and len(a.max_concurrency or [1]) > 1:
        raise CommandError("--quality takes one --max-concurrency", 2)
    if a.video_dir is not None and a.video_size is not None:
        raise CommandError("--video-size applies to drawn clips: not with --video-dir", 2)
    if any("=" not in header for header in a.header):
        raise CommandError("--header takes KEY=VALUE", 2)


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT in pixels, got {text!r}")
    return int(width), int(height)
