"""The files of an experiment: a self-describing JSON, a CSV, and one line of JSON.

`SCHEMA` increases when a field changes its meaning. Answers are stored as hashes. `kernels` is the
result of the kernel gate (None if the server is on another machine), `refused` the reason why
nothing was measured, `quality` the accuracy for each number of frames.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.environment import record_head
from metok_vllm.benchmarks.throughput.agreement import digest
from metok_vllm.benchmarks.throughput.load import Load
from metok_vllm.benchmarks.throughput.measures import Measures
from metok_vllm.benchmarks.throughput.pairs import RATES, TIMES, Figure, compare
from metok_vllm.benchmarks.throughput.run import Cell
from metok_vllm.benchmarks.throughput.split import PARTS

if TYPE_CHECKING:
    from metok_vllm.benchmarks.throughput.accuracy import Quality
    from metok_vllm.benchmarks.throughput.gate import Checked

BENCHMARK = "throughput"
SCHEMA = 1


def _kv(name: str) -> Figure:
    return lambda measures: measures.kv[name] if measures.kv else None


def _report(group: str, name: str) -> Figure:
    return lambda measures: measures.reports[group].get(name) if measures.reports else None


def _part(name: str) -> Figure:
    return lambda measures: measures.split.parts_s[name] if measures.split else None


def _of_prefill(name: str) -> Figure:
    return lambda measures: measures.split.of_prefill.get(name) if measures.split else None


def _question(name: str) -> Figure:
    def figure(measures: Measures) -> float | None:
        spread = measures.ttft_by_question_s.get(name)
        return None if spread is None else spread.p50

    return figure


def _sooner(measures: Measures) -> float | None:
    """The first question's TTFT over that of the next questions about the same video."""
    first, following = (_question(name)(measures) for name in ("first", "next"))
    return first / following if first is not None and following else None


# The columns of the tables and the CSV.
COLUMNS: dict[str, Figure] = {
    "sent": lambda m: m.sent,
    "answered": lambda m: m.answered,
    **RATES,
    **TIMES,
    "ttft_first_question_s_p50": _question("first"),
    "ttft_next_question_s_p50": _question("next"),
    "ttft_next_question_times_sooner": _sooner,
    "prompt_tokens": lambda m: m.prompt_tokens,
    "visual_tokens_dense": _report("visual_tokens", "dense"),
    "visual_tokens_encoded": _report("visual_tokens", "encoded"),
    "kv_blocks_prefill": _report("kv_blocks", "prefill"),
    "kv_blocks_decode": _report("kv_blocks", "decode"),
    "prefill_flops_dense": _report("decoder_prefill_flops", "dense"),
    "prefill_flops_metok": _report("decoder_prefill_flops", "metok"),
    "kv_usage_peak": _kv("usage_peak"),
    "metok_blocks_peak": _kv("held_peak"),
    "running_peak": _kv("running_peak"),
    "preemptions": lambda m: m.preemptions,
    "host_cores": lambda m: m.host_cores,
    "client_lag_s_p99": lambda m: m.client_lag_s.p99,
    "split_explained": lambda m: m.split.explained if m.split else None,
    **{f"split_{part}_s": _part(part) for part in PARTS},
    "stage1_share_of_prefill": _of_prefill("stage1"),
    "stage2_share_of_prefill": _of_prefill("stage2"),
}


def result(
    cells: Sequence[Cell],
    endpoints: Sequence[Endpoint],
    environment: Mapping[str, Any],
    configuration: Mapping[str, Any],
    kernels: Checked | None = None,
    quality: Sequence[Quality] = (),
    pending: str | None = None,
) -> dict[str, Any]:
    """The complete experiment, JSON-ready.

    `pending` replaces the ratios of lengths without an entry in `quality`.
    """
    names = [endpoint.name for endpoint in endpoints]
    lacks = {found.frames: found.lacks for found in quality}
    return {
        **record_head(BENCHMARK, SCHEMA, environment, configuration),
        "kernels": None if kernels is None else kernels.to_dict(),
        "refused": None if kernels is None else kernels.refused,
        "endpoints": [endpoint.described() for endpoint in endpoints],
        "quality": [found.to_dict() for found in quality],
        "cells": [cell_record(cell, names, lacks.get(cell.frames, pending)) for cell in cells],
    }


def cell_record(cell: Cell, names: Sequence[str], lacks: str | None = None) -> dict[str, Any]:
    """One cell: all rounds, the medians over rounds, and the comparison of a pair.

    `lacks` is the reason why there is no ratio, or None.
    """
    comparison = compare(cell, names, lacks)
    return {
        **_place(cell.frames, cell.load),
        "rounds": [
            {name: run.measures.to_dict() for name, run in runs.items()} for runs in cell.rounds
        ],
        "medians": {
            name: _medians([runs[name].measures for runs in cell.rounds]) for name in names
        },
        "comparison": comparison.to_dict() if comparison is not None else None,
        "requests": {
            name: [_request(o) for runs in cell.rounds for o in runs[name].outcomes]
            for name in names
        },
    }


def one_line(record: Mapping[str, Any]) -> str:
    """The result without rounds and requests, in one line."""
    short = dict(record)
    left_out = ("rounds", "requests")
    short["cells"] = [
        {key: value for key, value in cell.items() if key not in left_out}
        for cell in record["cells"]
    ]
    return json.dumps(short, allow_nan=False)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write the result to a temporary file and rename it, so that no partial file remains."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    beside.replace(path)


def write_csv(path: Path, cells: Sequence[Cell]) -> None:
    """One row for each server in each round."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        where = list(_place(0, Load()))
        writer.writerow([*where, "round", "server", *COLUMNS])
        for cell in cells:
            for number, runs in enumerate(cell.rounds, start=1):
                for name, run in runs.items():
                    figures = [figure(run.measures) for figure in COLUMNS.values()]
                    row = [*_place(cell.frames, cell.load).values(), number, name, *figures]
                    writer.writerow(["" if value is None else value for value in row])


def _place(frames: int, load: Load) -> dict[str, Any]:
    rate = None if math.isinf(load.request_rate) else load.request_rate
    return {"frames": frames, "max_concurrency": load.max_concurrency, "request_rate": rate}


def _medians(rounds: Sequence[Measures]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, figure in COLUMNS.items():
        values = [value for m in rounds if (value := figure(m)) is not None]
        found[name] = statistics.median(values) if len(values) == len(rounds) and values else None
    return found


def _request(outcome: Outcome) -> dict[str, Any]:
    return {
        "key": outcome.key,
        "kind": outcome.kind,
        "question": outcome.question,
        "ttft_s": outcome.ttft_s,
        "end_to_end_s": outcome.end_to_end_s,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "error": outcome.error,
        "answer": digest(outcome),
    }
