"""Compare the quality of settings through a real server.

python -m metok_vllm.benchmarks.quality --folder F --frames 16 64 128 --settings frontier --out DIR
python -m metok_vllm.benchmarks.quality --folder F --base-url http://localhost:8000
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from metok_vllm.benchmarks.client.endpoint import EndpointError
from metok_vllm.benchmarks.quality.command import Plan, Settings, read_cells, run
from metok_vllm.benchmarks.quality.frontier import TARGETS, frontier, methods
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import CONCURRENCY
from metok_vllm.benchmarks.quality.source import DEMO, Source, opened
from metok_vllm.benchmarks.questions.request import OUTPUT_LEN
from metok_vllm.benchmarks.questions.settings import (
    ablations,
    for_server,
    presets,
    read_settings,
    second_turns,
    stages,
)
from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError, complain
from metok_vllm.errors import ConfigError, MetokError

FRONTIER, METHODS = "frontier", "methods"
NOT_RECORDED = ("folder", "out", "base_url", "model", "metok_config", "json")


def parser() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(prog="python -m metok_vllm.benchmarks.quality")
    made.add_argument("--folder", type=Path, action="append", required=True, help="repeatable")
    made.add_argument("--frames", type=int, nargs="+", default=[32])
    made.add_argument(
        "--settings",
        default="presets",
        help="frontier, methods, presets, stages, ablations, turns or a JSON file",
    )
    made.add_argument("--out", type=Path, required=True, help="folder of the results")
    made.add_argument("--model", help="path or name (default: the demo)")
    made.add_argument("--base-url", help="a running METok server; without it, one is started")
    made.add_argument("--server-flags", default="", help='--server-flags="--dtype half"')
    made.add_argument(
        "--metok-config", type=Path, help="YAML that the server starts, or was started, with"
    )
    made.add_argument("--dtype", help="with --base-url and --model: that of the server")
    made.add_argument("--limit", type=int, help="questions a folder, of whole videos")
    made.add_argument("--output-len", type=int, default=OUTPUT_LEN, help="tokens of an answer")
    made.add_argument("--max-concurrency", type=int, default=CONCURRENCY)
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    made.add_argument("--json", action="store_true", help="the result as a line, without tables")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement and return the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return _measure(arguments)
    except CommandError as error:
        complain(str(error))
        return error.status
    except (MetokError, EndpointError, OSError) as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def settings_of(
    name: str, geometry: Geometry | None, config: METokConfig | None = None, own: bool = False
) -> Settings:
    """The settings by number of frames on a server with `config` (None: unknown).

    `own` adds the server's own settings. Raises ConfigError for settings at equal KV without
    `geometry`.
    """
    if name in (FRONTIER, METHODS):
        if geometry is None:
            raise ConfigError(f"{name} needs the model's sizes: name it with --model", name)
        sizes = geometry
        if name == METHODS:
            return lambda frames: methods(frames, sizes, config)
        return lambda frames: frontier(frames, sizes, config, own)
    named = {
        "presets": lambda: presets(TARGETS),
        "stages": stages,
        "ablations": ablations,
        "turns": second_turns,
    }
    fixed = named.get(name)
    found = for_server(read_settings(Path(name)) if fixed is None else fixed(), config, own)
    return lambda _: found


def _measure(arguments: argparse.Namespace) -> int:
    a = arguments
    nothing_named = a.base_url is None and a.model is None
    source = Source(
        base_url=a.base_url,
        checkpoint=DEMO if nothing_named else None,
        model=a.model,
        dtype=a.dtype,
        flags=shlex.split(a.server_flags),
        config_file=a.metok_config,
    )
    config = source.config()
    source.check_frames(a.frames)
    with opened(source) as (serve, geometry):
        settings = settings_of(a.settings, geometry, config, source.has_own_config)
        cells = read_cells(a.folder, a.frames, settings, a.limit)
        recorded = {k: v for k, v in vars(a).items() if k not in NOT_RECORDED}
        recorded["model"] = DEMO if nothing_named else Path(a.model or "").name
        recorded["folders"] = [folder.name for folder in a.folder]
        plan = Plan(
            cells,
            a.out,
            geometry,
            a.max_concurrency,
            a.output_len,
            a.seed,
            recorded,
            (config or METokConfig()) if a.settings == FRONTIER else None,
            a.json,
        )
        return run(plan, serve)


if __name__ == "__main__":
    sys.exit(main())
