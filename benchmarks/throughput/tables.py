"""The result's JSON as tables.

Every ratio is shown with the agreement of the answers, and with the accuracy if it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from metok_vllm.benchmarks.throughput.split import PARTS
from metok_vllm.benchmarks.throughput.turn_tables import turn_ratios, turn_table

Record = Mapping[str, Any]

# Shown only if there were several questions about a video.
NEXT_QUESTION = (
    ("first question p50", "ttft_first_question_s_p50", "{:.2f}"),
    ("next question p50", "ttft_next_question_s_p50", "{:.2f}"),
    ("times sooner", "ttft_next_question_times_sooner", "{:.2f}"),
)
FIGURES = (
    ("requests/s", "requests_per_s", "{:.3f}"),
    ("video-s/s", "video_seconds_per_s", "{:.1f}"),
    ("tokens/s", "output_tokens_per_s", "{:.1f}"),
    ("TTFT p50", "ttft_s_p50", "{:.2f}"),
    ("p90", "ttft_s_p90", "{:.2f}"),
    ("p99", "ttft_s_p99", "{:.2f}"),
    *NEXT_QUESTION,
    ("a token p50", "per_output_token_s_p50", "{:.4f}"),
    ("p90", "per_output_token_s_p90", "{:.4f}"),
    ("p99", "per_output_token_s_p99", "{:.4f}"),
    ("gap p50", "inter_token_s_p50", "{:.4f}"),
    ("p90", "inter_token_s_p90", "{:.4f}"),
    ("p99", "inter_token_s_p99", "{:.4f}"),
    ("E2E p50", "end_to_end_s_p50", "{:.2f}"),
    ("p90", "end_to_end_s_p90", "{:.2f}"),
    ("p99", "end_to_end_s_p99", "{:.2f}"),
)
COSTS = (
    ("prompt tokens", "prompt_tokens", "{:.0f}"),
    ("cached tokens", "cached_tokens", "{:.0f}"),
    ("visual, dense", "visual_tokens_dense", "{:.0f}"),
    ("visual, encoded", "visual_tokens_encoded", "{:.0f}"),
    ("prefill FLOP, dense", "prefill_flops_dense", "{:.2e}"),
    ("prefill FLOP", "prefill_flops_metok", "{:.2e}"),
    ("KV peak", "kv_usage_peak", "{:.1%}"),
    ("preempted", "preemptions", "{:.0f}"),
    ("host cores", "host_cores", "{:.2f}"),
    *((part.replace("_", " "), f"split_{part}_s", "{:.3f}") for part in PARTS),
    ("explained", "split_explained", "{:.1%}"),
    ("stage 1, of prefill", "stage1_share_of_prefill", "{:.1%}"),
    ("stage 2, of prefill", "stage2_share_of_prefill", "{:.1%}"),
)
RATIOS = (
    ("requests/s", "requests_per_s"),
    ("output tokens/s", "output_tokens_per_s"),
    ("TTFT p50", "ttft_s_p50"),
    ("TTFT p99", "ttft_s_p99"),
    ("time a token p50", "per_output_token_s_p50"),
    ("E2E p50", "end_to_end_s_p50"),
)
# Columns of servers that fill a terminal of 80 characters.
COLUMNS = 4


def tables(result: Record) -> list[Table]:
    """Tables of speed and cost, by turn, and of the comparisons if there are several servers."""
    cells = result["cells"]
    a_table = max(1, COLUMNS // max(1, len(result["endpoints"])))
    groups = [cells[i : i + a_table] for i in range(0, len(cells), a_table)]
    speed = "Speed (medians over rounds; times in seconds)"
    cost = "Cost, and the parts of a mean request's time (seconds)"
    shown = [_servers(speed, _figures(group), group, result) for group in groups]
    turns = [turn_table(_turns(group)) for group in groups]
    shown += [table for table in turns if table is not None]
    shown += [_servers(cost, COSTS, group) for group in groups]
    return [*shown, *(table for group in groups for table in _compared(group, result))]


def _turns(cells: Sequence[Record]) -> list[tuple[str, Record]]:
    """Headings and figures by turn."""
    return [
        (_heading(name, cell), turns) for cell in cells for name, turns in cell["turns"].items()
    ]


def _compared(cells: Sequence[Record], result: Record) -> Iterator[Table]:
    """A table for each server that the last one is compared with."""
    found = [[cell["comparison"], *cell["more_comparisons"]] for cell in cells]
    for pairs in zip(*found, strict=True):
        if pairs[0] is not None:
            yield _comparisons(list(zip(cells, pairs, strict=True)), result)


def quality_of(result: Record, frames: int) -> Record | None:
    """The accuracy at a number of frames; None if it was not measured."""
    found = [each for each in result.get("quality") or () if each["frames"] == frames]
    return found[0] if found else None


def right_share(quality: Record | None, name: str) -> str:
    """A server's accuracy with its interval, or a dash."""
    estimate = None if quality is None else quality["accuracy"].get(name)
    return _points(estimate, "{:.1f}")


def place(cell: Record) -> str:
    """The length and load of a cell as text."""
    parts = [f"{cell['frames']} frames"]
    if cell["max_concurrency"] is not None:
        parts.append(f"{cell['max_concurrency']} in flight")
    if cell["request_rate"] is not None:
        parts.append(f"{cell['request_rate']:g}/s")
    return ", ".join(parts)


def failures(result: Record) -> list[str]:
    """A line for every server and reason of failed requests."""
    counts: dict[tuple[str, str], int] = {}
    for cell in result["cells"]:
        for runs in cell["rounds"]:
            for name, measures in runs.items():
                for reason, count in measures["errors"].items():
                    counts[name, reason] = counts.get((name, reason), 0) + count
    for quality in result.get("quality") or ():
        reason = f"{quality['source']} questions at {quality['frames']} frames"
        counts |= {(name, reason): count for name, count in quality["failed"].items() if count}
    return [f"{name}: {count} failed: {reason}" for (name, reason), count in counts.items()]


def _servers(
    title: str,
    figures: Sequence[tuple[str, str, str]],
    cells: Sequence[Record],
    result: Record | None = None,
) -> Table:
    """A column for every server in every cell, which fits a narrow terminal.

    With `result`, rows of failed requests and of the accuracy follow.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns: list[Record] = []
    for cell in cells:
        for name, medians in cell["medians"].items():
            table.add_column(_heading(name, cell), justify="right")
            columns.append(medians)
    for label, key, form in figures:
        values = [column.get(key) for column in columns]
        if any(value is not None for value in values):
            table.add_row(label, *(_shown(value, form) for value in values))
    if result is not None:
        places = [(cell, name) for cell in cells for name in cell["medians"]]
        lost = [
            sum(runs[name]["sent"] - runs[name]["answered"] for runs in cell["rounds"])
            for cell, name in places
        ]
        table.add_row("failed", *map(str, lost))
        right = [right_share(quality_of(result, cell["frames"]), name) for cell, name in places]
        if result.get("quality"):
            table.add_row("right, %", *right)
    return table


def _heading(name: str, cell: Record) -> str:
    return f"{name}\n{place(cell).replace(', ', chr(10))}"


def _comparisons(pairs: Sequence[tuple[Record, Record]], result: Record) -> Table:
    """A column for every cell: ratios with their range over rounds, then the quality."""
    other, plain = pairs[0][1]["other"], pairs[0][1]["plain"]
    title = f"{other}: times as good as {plain}, median of rounds (lowest to highest)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for cell, _ in pairs:
        table.add_column(place(cell), justify="right")
    for label, key in (*RATIOS, *turn_ratios([pair["ratios"] for _, pair in pairs])):
        if not any(key in pair["ratios"] for _, pair in pairs):
            continue
        table.add_row(label, *(_ratio(pair["ratios"].get(key)) for _, pair in pairs))
    for label, key in (("answers equal", "exact"), ("first token equal", "first")):
        same = [pair["agreement"] for _, pair in pairs]
        table.add_row(label, *("-" if s is None else f"{s[key]:.0%}" for s in same))
    quality = [quality_of(result, cell["frames"]) for cell, _ in pairs]
    for label, values in _accuracy_rows(quality, plain, other):
        table.add_row(label, *values)
    if any(pair["refused"] for _, pair in pairs):
        table.add_row("no ratio", *(pair["refused"] or "" for _, pair in pairs))
    return table


def _accuracy_rows(
    quality: Sequence[Record | None], plain: str, other: str
) -> Iterator[tuple[str, list[str]]]:
    """Rows about the questions that followed the rounds."""
    if not any(quality):
        return
    sources = ", ".join(dict.fromkeys(q["source"] for q in quality if q is not None))
    yield f"{sources}, questions", ["-" if q is None else str(q["questions"]) for q in quality]
    for name in (plain, other):
        yield f"right, {name}, %", [right_share(q, name) for q in quality]
    gains = [None if q is None else q["difference"] for q in quality]
    yield "difference, points", [_points(gain, "{:+.1f}") for gain in gains]
    chances = [None if q is None else q["chance"] for q in quality]
    yield "guessing, %", ["-" if c is None else f"{100 * c:.1f}" for c in chances]
    same = [None if q is None else q["agreement"] for q in quality]
    yield "equal to each other", ["-" if s is None else f"{s['exact']:.0%}" for s in same]


def _figures(cells: Sequence[Record]) -> tuple[tuple[str, str, str], ...]:
    """The figures; those of next questions only if a video had several."""
    medians = [columns for cell in cells for columns in cell["medians"].values()]
    if any(columns.get("ttft_next_question_s_p50") is not None for columns in medians):
        return FIGURES
    return tuple(figure for figure in FIGURES if figure not in NEXT_QUESTION)


def _points(estimate: Record | None, form: str) -> str:
    """A share in per cent with its interval over videos."""
    if estimate is None:
        return "-"
    if estimate["low"] is None:
        return f"{form.format(100 * estimate['mean'])} (one video)"
    mean, low, high = (form.format(100 * estimate[key]) for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _ratio(ratio: Record | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f})"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
