"""`metok bench`: throughput and latency under load, of one server or of two in turn; or, with
`--quality`, what METok's presets do to the answers.

metok bench --checkpoint cpu-reference --frames 8 64 --max-concurrency 1 8
metok bench --base-url http://localhost:8000 --frames 64 --request-rate 0.5
metok bench compare before/result.json after/result.json
metok bench --quality FOLDER --model MODEL --frames 32
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.demo import CONFIG_FILE
from metok_vllm.server.commands import bench_options, bench_quality, bench_settings
from metok_vllm.server.commands.console import CommandError, complain, out, write

if TYPE_CHECKING:
    from metok_vllm.benchmarks.throughput.endpoint import Endpoint
    from metok_vllm.benchmarks.throughput.gate import Checked
    from metok_vllm.benchmarks.throughput.request import BenchRequest
    from metok_vllm.benchmarks.throughput.run import Cell

RESULT, ROWS = "result.json", "rounds.csv"
# Cells of one sweep must not share a text or picture that a server has cached.
SEEDS_APART = 1000
ELSEWHERE = "kernel operations are not checked: the server is on another machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `metok bench`."""
    bench_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, or compare two results. Raises CommandError for what the user can put right."""
    if arguments.action == "compare":
        return _compare(arguments)
    bench_options.check(arguments)
    bench_quality.check(arguments)
    kernels = _check_kernels(arguments)
    if kernels is not None and kernels.refused is not None:
        return _refuse(arguments, kernels)
    if arguments.quality is None:
        return _measure(arguments, kernels)
    found = {"kernels": None if kernels is None else kernels.to_dict()}
    return bench_quality.measure_presets(arguments, _result_folder(arguments), found)


def _check_kernels(arguments: argparse.Namespace) -> Checked | None:
    """What the red gate finds here; None where no server of this machine is measured."""
    from metok_vllm.benchmarks.throughput import gate
    from metok_vllm.benchmarks.throughput.endpoint import is_local

    if arguments.base_url is not None and not is_local(arguments.base_url):
        complain(ELSEWHERE)
        return None
    return gate.check_operations(gate.engine_device())


def _refuse(arguments: argparse.Namespace, kernels: Checked) -> int:
    """Nothing is measured with an operation that is wrong: no figure of it can be believed."""
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.quality import records as of_quality
    from metok_vllm.benchmarks.throughput import records

    configuration = bench_settings.recorded(arguments)
    result = records.result([], [], environment(), configuration, kernels)
    if arguments.quality is not None:
        result |= {"benchmark": of_quality.BENCHMARK, "schema": of_quality.SCHEMA, "rows": []}
    folder = _result_folder(arguments)
    _save(folder, result, [])
    complain(f"nothing is measured: {kernels.refused}")
    out().print(f"In {folder}: {RESULT}", markup=False)
    write(records.one_line(result) + "\n")
    return 1


def _measure(arguments: argparse.Namespace, kernels: Checked | None) -> int:
    from metok_vllm.benchmarks.environment import environment
    from metok_vllm.benchmarks.throughput import accuracy, records
    from metok_vllm.benchmarks.throughput.endpoint import EndpointError
    from metok_vllm.benchmarks.throughput.load import WarmUpError
    from metok_vllm.benchmarks.throughput.progress import LiveProgress
    from metok_vllm.benchmarks.throughput.run import experiment
    from metok_vllm.benchmarks.throughput.workloads import workload

    sweep, settings = bench_settings.sweep(arguments), bench_settings.workload_settings(arguments)
    folder = _result_folder(arguments)
    configuration = bench_settings.recorded(arguments)
    cells: list[Cell] = []
    quality: list[accuracy.Quality] = []

    def requests(frames: int) -> Iterator[BenchRequest]:
        seed = settings.seed * SEEDS_APART + frames
        return workload(replace(settings, frames=(frames,), seed=seed))

    def save() -> dict[str, Any]:
        # No ratio while answers that are to stand beside it are not there.
        awaited = accuracy.NOT_YET if questions else None
        found = (configuration, kernels, quality, awaited)
        result = records.result(cells, endpoints, facts, *found)
        _save(folder, result, cells)
        return result

    def keep(cell: Cell) -> None:
        cells.append(cell)
        save()

    try:
        with ExitStack() as stack:
            questions = stack.enter_context(bench_quality.questions_beside(arguments))
            endpoints = stack.enter_context(_endpoints(arguments, configuration))
            facts = environment()
            save()  # a folder that cannot be written to shows at once
            with LiveProgress() as progress:
                asyncio.run(experiment(endpoints, sweep, requests, progress, keep))
            for each in questions:
                complain(f"{each.source}: {len(each.asked)} questions at {each.frames} frames")
                quality.append(asyncio.run(accuracy.ask_all(endpoints, each, arguments.timeout)))
            result = save()
    except (EndpointError, WarmUpError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"a file cannot be read or written: {error}") from error
    bench_quality.warn_untrained(arguments)
    return _show(result, folder)


def _result_folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.result_dir or time.strftime("metok-bench-%Y%m%d-%H%M%S"))


def _save(folder: Path, result: dict[str, Any], cells: Sequence[Cell]) -> None:
    """What is measured so far, so that it outlives a later failure."""
    from metok_vllm.benchmarks.throughput import records

    try:
        folder.mkdir(parents=True, exist_ok=True)
        records.write_json(folder / RESULT, result)
        records.write_csv(folder / ROWS, cells)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror or error}") from error


@contextmanager
def _endpoints(
    arguments: argparse.Namespace, configuration: dict[str, Any]
) -> Iterator[Sequence[Endpoint]]:
    """The servers to measure, the one to compare with first. Ours end with the context."""
    from metok_vllm.benchmarks.throughput.endpoint import find_endpoint

    if arguments.base_url is not None:
        yield bench_settings.given_endpoints(arguments)
        return
    try:
        from metok_vllm.benchmarks.throughput import checkpoints, launch, servers
    except ModuleNotFoundError as error:
        raise CommandError("vLLM is not installed; `metok doctor` says how to get it") from error
    flags, metok_flags = bench_settings.server_flags(arguments)
    with ExitStack() as stack:
        model = arguments.model
        if arguments.checkpoint is not None:
            made = stack.enter_context(checkpoints.checkpoint(arguments.checkpoint))
            model, flags = made.model, [*made.flags, *flags]
            metok_flags = [*made.metok_flags, *metok_flags]
        if arguments.checkpoint == bench_options.DEMO:
            # The layers it was calibrated with, as `metok serve --demo`; a file of the user's own
            # comes later and wins.
            metok_flags = ["--metok-config", str(CONFIG_FILE), *metok_flags]
        # Requests say how many frames are to be sampled; plain vLLM takes that on trust only.
        flags = ["--trust-request-mm-kwargs", *flags]
        complain("starting both servers")
        both = stack.enter_context(servers.pair(model, flags, metok_flags))
        commands = {"plain": both.plain_command, "metok": both.metok_command}
        configuration["servers"] = {
            name: bench_settings.without_places(command, model)
            for name, command in commands.items()
        }
        configuration["servers_environment"] = launch.environment()
        yield [
            find_endpoint(name, child.url, extra_body=body, pid=child.process.pid)
            for name, child, body in (
                ("plain", both.plain, arguments.baseline_extra_body),
                ("metok", both.metok, arguments.extra_body),
            )
        ]


def _show(result: dict[str, Any], folder: Path) -> int:
    from metok_vllm.benchmarks.throughput.charts import NoMatplotlib, draw_charts
    from metok_vllm.benchmarks.throughput.records import one_line
    from metok_vllm.benchmarks.throughput.tables import failures, tables

    console = out()
    for table in tables(result):
        console.print(table)
    lost = failures(result)
    for line in lost:
        complain(line)
    names = [RESULT, ROWS]
    try:
        names += [path.name for path in draw_charts(result, folder)]
    except NoMatplotlib as error:
        complain(f"no charts: {error}")
    console.print(f"In {folder}: {', '.join(names)}", markup=False)
    write(one_line(result) + "\n")
    return 1 if lost else 0


def _compare(arguments: argparse.Namespace) -> int:
    from metok_vllm.benchmarks.throughput.compare import (
        comparison_table,
        differences,
        read_result,
        rows,
    )

    one, other = (read_result(Path(path)) for path in arguments.results)
    found = rows(one, other)
    if not found:
        raise CommandError("the two results have no length, load and server in common")
    console = out()
    for line in differences(one, other):
        console.print(f"differs: {line}", markup=False)
    console.print(comparison_table(found))
    return 0
