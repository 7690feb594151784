"""The files of an experiment: a self-describing JSON, a CSV, and one line of JSON.

`SCHEMA` increases when a field changes its meaning. Answers are stored as hashes. `kernels` is the
result of the kernel gate, or None if the server is on another machine. `refused` is the reason why
nothing was measured, `quality` the accuracy for each number of frames.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.client.scrape import Scrapes
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.environment import record_head
from metok_vllm.benchmarks.throughput.agreement import digest
from metok_vllm.benchmarks.throughput.load import Load, LoadRun
from metok_vllm.benchmarks.throughput.measures import Measures, measure
from metok_vllm.benchmarks.throughput.pairs import comparisons
from metok_vllm.benchmarks.throughput.run import Cell
from metok_vllm.benchmarks.throughput.split import PARTS
from metok_vllm.benchmarks.throughput.turns import over_rounds

if TYPE_CHECKING:
    from metok_vllm.benchmarks.throughput.accuracy import Quality
    from metok_vllm.benchmarks.throughput.gate import Checked

BENCHMARK = "throughput"
SCHEMA = 1


# The figures of a run without requests, for the names of all columns.
NOTHING = measure(LoadRun((), ()), Scrapes())


def columns(m: Measures) -> dict[str, float | None]:
    """A run's row of the tables and the CSV by column; None for an unknown figure."""
    kv, reports = m.kv or {}, m.reports or {}
    visual, blocks = reports.get("visual_tokens", {}), reports.get("kv_blocks", {})
    flops = reports.get("decoder_prefill_flops", {})
    first, following = (m.ttft_by_question_s.get(which) for which in ("first", "next"))
    first_s, next_s = first and first.p50, following and following.p50
    parts_s, of_prefill = (m.split.parts_s, m.split.of_prefill) if m.split else ({}, {})
    return {
        "sent": m.sent,
        "answered": m.answered,
        **m.rates(),
        **m.times(),
        "ttft_first_question_s_p50": first_s,
        "ttft_next_question_s_p50": next_s,
        "ttft_next_question_times_sooner": first_s / next_s if first_s and next_s else None,
        "prompt_tokens": m.prompt_tokens,
        "cached_tokens": m.cached_tokens,
        "visual_tokens_dense": visual.get("dense"),
        "visual_tokens_encoded": visual.get("encoded"),
        "kv_blocks_prefill": blocks.get("prefill"),
        "kv_blocks_decode": blocks.get("decode"),
        "prefill_flops_dense": flops.get("dense"),
        "prefill_flops_metok": flops.get("metok"),
        "kv_usage_peak": kv.get("usage_peak"),
        "metok_blocks_peak": kv.get("held_peak"),
        "running_peak": kv.get("running_peak"),
        "preemptions": m.preemptions,
        "host_cores": m.host_cores,
        "client_lag_s_p99": m.client_lag_s.p99,
        "split_explained": m.split.explained if m.split else None,
        **{f"split_{part}_s": parts_s.get(part) for part in PARTS},
        "stage1_share_of_prefill": of_prefill.get("stage1"),
        "stage2_share_of_prefill": of_prefill.get("stage2"),
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
        "kernels": None if kernels is None else asdict(kernels),
        "refused": None if kernels is None else kernels.refused,
        "endpoints": [endpoint.described() for endpoint in endpoints],
        "quality": [asdict(found) for found in quality],
        "cells": [cell_record(cell, names, lacks.get(cell.frames, pending)) for cell in cells],
    }


def cell_record(cell: Cell, names: Sequence[str], lacks: str | None = None) -> dict[str, Any]:
    """One cell: all rounds, the medians over rounds, and the last server beside the others.

    `comparison` is with the first server, `more_comparisons` with those between. `lacks` is the
    reason why there is no ratio, or None.
    """
    compared = [asdict(each) for each in comparisons(cell, names, lacks)]
    return {
        **_place(cell.frames, cell.load),
        "rounds": [
            {name: asdict(run.measures) for name, run in runs.items()} for runs in cell.rounds
        ],
        "medians": {
            name: _medians([runs[name].measures for runs in cell.rounds]) for name in names
        },
        "turns": {
            name: over_rounds([runs[name].measures.by_turn for runs in cell.rounds])
            for name in names
        },
        "comparison": compared[0] if compared else None,
        "more_comparisons": compared[1:],
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
        writer.writerow([*where, "round", "server", *columns(NOTHING)])
        for cell in cells:
            for number, runs in enumerate(cell.rounds, start=1):
                for name, run in runs.items():
                    figures = columns(run.measures).values()
                    row = [*_place(cell.frames, cell.load).values(), number, name, *figures]
                    writer.writerow(["" if value is None else value for value in row])


def _place(frames: int, load: Load) -> dict[str, Any]:
    rate = None if math.isinf(load.request_rate) else load.request_rate
    return {"frames": frames, "max_concurrency": load.max_concurrency, "request_rate": rate}


def _medians(rounds: Sequence[Measures]) -> dict[str, float | None]:
    """The median of each figure over the rounds; None if a round lacks it."""
    rows = [columns(measures) for measures in rounds]
    found: dict[str, float | None] = {}
    for name in columns(NOTHING):
        values = [value for row in rows if (value := row[name]) is not None]
        found[name] = statistics.median(values) if len(values) == len(rounds) and values else None
    return found


def _request(outcome: Outcome) -> dict[str, Any]:
    return {
        "key": outcome.key,
        "kind": outcome.kind,
        "question": outcome.question,
        "turn": outcome.turn,
        "ttft_s": outcome.ttft_s,
        "end_to_end_s": outcome.end_to_end_s,
        "prompt_tokens": outcome.prompt_tokens,
        "cached_tokens": outcome.cached_tokens,
        "completion_tokens": outcome.completion_tokens,
        "error": outcome.error,
        "answer": digest(outcome),
    }
