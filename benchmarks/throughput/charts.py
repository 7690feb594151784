"""Charts of a result's JSON: `draw_charts(json.load(...), folder)`.

    python -m metok_vllm.benchmarks.throughput.charts a.json b.json --out FOLDER

combines several results of the same servers, with different loads or lengths. Needs matplotlib
(`pip install "metok-vllm[bench]"`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.throughput.compare import read_result
from metok_vllm.benchmarks.throughput.split import PARTS
from metok_vllm.benchmarks.throughput.tables import place

Record = Mapping[str, Any]

# Distinguishable for colour-blind readers (Okabe and Ito); markers differ for grey print.
SERVER_COLOURS = ("#8a9199", "#0072b2", "#d55e00")
MARKERS = ("o", "s", "^")
PART_COLOURS = ("#56b4e9", "#009e73", "#f0e442", "#e69f00", "#0072b2", "#cc79a7", "#bbbbbb")


class ChartError(Exception):
    """A chart cannot be drawn; the message says why."""


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches. Raises ChartError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ChartError("matplotlib is missing: pip install 'metok-vllm[bench]'") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def draw_charts(result: Record, folder: Path) -> list[Path]:
    """Draw the charts for which the result has enough points, and return their files.

    Raises ChartError without matplotlib.
    """
    drawn: dict[str, Callable[[Any, Record], bool]] = {
        "throughput.png": _throughput,
        "ttft.png": _ttft,
        "kv.png": _kv,
        "split.png": _split,
    }
    written = []
    for name, draw in drawn.items():
        figure = new_figure(8, 4.5)
        axes = figure.add_subplot()
        if draw(axes, result):
            figure.savefig(folder / name)
            written.append(folder / name)
    return written


def combine(results: Sequence[Record]) -> Record:
    """One result with the cells of all. Raises ValueError if the names of servers differ."""
    servers = [[endpoint["name"] for endpoint in result["endpoints"]] for result in results]
    if any(names != servers[0] for names in servers):
        raise ValueError(f"these results are of different servers: {servers}")
    return {**results[0], "cells": [cell for result in results for cell in result["cells"]]}


def _throughput(axes: Any, result: Record) -> bool:
    """Requests/s over the requests in flight, with a line for each server and length."""
    cells = [cell for cell in result["cells"] if cell["max_concurrency"] is not None]
    lines = _lines(cells, "frames", "max_concurrency", "requests_per_s", "{} frames")
    return _plot(axes, lines, result, "requests in flight", "requests/s")


def _ttft(axes: Any, result: Record) -> bool:
    """Median TTFT over the frames, with a line for each server and load."""
    lines = _lines(result["cells"], "load", "frames", "ttft_s_p50", "{}")
    return _plot(axes, lines, result, "frames", "median time to the first token (s)")


def _kv(axes: Any, result: Record) -> bool:
    """Share of the KV pool in use during the last round of the largest cell."""
    cell = _largest(result)
    found = False
    for name, measures in cell["rounds"][-1].items():
        if measures["kv"] is None:
            continue
        points = measures["kv"]["usage_over_time"]
        colour, _ = _style(result, name)
        times_s, usage = [t for t, _ in points], [100 * u for _, u in points]
        axes.step(times_s, usage, where="post", color=colour, label=name)
        found = True
    _label(axes, f"KV cache, {place(cell)}", "time (s)", "KV pool in use (%)")
    return found


def _split(axes: Any, result: Record) -> bool:
    """The mean request's seconds by part, with a stacked bar for each server and cell."""
    bars = [
        (f"{name}\n{place(cell).replace(', ', chr(10))}", medians)
        for cell in result["cells"]
        for name, medians in cell["medians"].items()
        if medians["split_explained"] is not None
    ]
    bottoms = [0.0] * len(bars)
    for part, colour in zip(PARTS, PART_COLOURS, strict=True):
        heights = [max(0.0, medians[f"split_{part}_s"] or 0.0) for _, medians in bars]
        if any(heights):
            places = range(len(bars))
            axes.bar(places, heights, bottom=bottoms, color=colour, label=part.replace("_", " "))
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    _label(axes, "Where the time of a mean request goes", "", "seconds")
    return bool(bars)


Line = tuple[str, str, list[tuple[float, float]]]


def _lines(cells: Sequence[Record], group: str, x: str, y: str, form: str) -> list[Line]:
    """(server, label, points) for every server and group."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        load = place(cell).partition(", ")[2]
        label = form.format(load if group == "load" else cell[group])
        for name, medians in cell["medians"].items():
            if medians[y] is not None:
                points.setdefault((name, label), []).append((cell[x], medians[y]))
    return [(name, label, sorted(found)) for (name, label), found in points.items()]


def _plot(axes: Any, lines: Sequence[Line], result: Record, x: str, y: str) -> bool:
    kinds = list(dict.fromkeys(label for _, label, _ in lines))
    dashes = ("-", "--", ":", "-.")
    for name, label, points in lines:
        colour, marker = _style(result, name)
        style = dashes[kinds.index(label) % len(dashes)]
        text = f"{name}, {label}" if label else name
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=style, label=text)
    _label(axes, "", x, y)
    axes.set_xscale("log", base=2)
    ticks = sorted({p[0] for _, _, points in lines for p in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return any(len(points) > 1 for _, _, points in lines)


def _style(result: Record, name: str) -> tuple[str, str]:
    names = [endpoint["name"] for endpoint in result["endpoints"]]
    number = names.index(name) % len(MARKERS)
    return SERVER_COLOURS[number], MARKERS[number]


def _largest(result: Record) -> Record:
    cells: Sequence[Record] = result["cells"]
    return max(cells, key=lambda cell: cell["frames"] * (cell["max_concurrency"] or 1))


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e2e5e8")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the charts of the given results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for path in draw_charts(combine([read_result(path) for path in args.results]), args.out):
        print(path)


if __name__ == "__main__":
    main()
