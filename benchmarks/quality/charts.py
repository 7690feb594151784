"""The frontier chart of a result's JSON: accuracy over KV bytes and over FLOPs.

Needs matplotlib (`pip install "metok-vllm[bench]"`). Lines differ in colour (Okabe and Ito) and
marker and are labelled at their ends, so no reader depends on colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.quality.records import read_rows
from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.questions.bootstrap import Estimate
from metok_vllm.benchmarks.questions.prompts import ALL
from metok_vllm.benchmarks.questions.settings import DENSE, STAGES
from metok_vllm.benchmarks.throughput.charts import new_figure

PICTURE = "quality.png"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a7000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DENSE_COLOUR = "#6b7177"
APART = 0.012  # shift of x between lines, so that intervals do not cover each other
MARGIN = 1.2  # factor between the outermost points and the ends of the axis
LABELS_APART = 0.055  # of the height of a panel

Figure = Callable[[Row], float | None]


def draw_chart(result: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw the chart and return its file; None without a setting to compare with dense.

    Raises ChartError without matplotlib.
    """
    found = [row for row in read_rows(result) if row.kind == ALL]
    right = any(row.accuracy for row in found)
    panels = [(label, x) for label, x in _axes(found) if any(x(row) for row in found)]
    lengths = list(dict.fromkeys(row.frames for row in found))
    if len({row.setting for row in found}) < 2 or not panels:
        return None
    figure = new_figure(6.4 * len(panels), 4.2 * len(lengths))
    from matplotlib import ticker

    grid = figure.subplots(len(lengths), len(panels), squeeze=False)
    for frames, across in zip(lengths, grid, strict=True):
        mine = [row for row in found if row.frames == frames]
        for (label, x), axes in zip(panels, across, strict=True):
            _panel(axes, mine, x, right)
            axes.set_xlabel(label)
            axes.set_ylabel("right answers (%)" if right else "answers equal to dense (%)")
            axes.set_title(_title(mine[0]), loc="left", fontsize=9)
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(_tick))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    path = folder / PICTURE
    figure.savefig(path)
    return path


def _axes(found: Sequence[Row]) -> list[tuple[str, Figure]]:
    kv: tuple[str, Figure] = ("KV cache held for decoding (KiB)", lambda r: _kib(r.kv_bytes))
    if not any(row.kv_bytes for row in found):
        kv = ("KV cache held for decoding (share of dense)", lambda row: row.kv_share)
    return [kv, ("decoder prefill (GFLOP)", lambda r: _giga(r.flops))]


def _panel(axes: Any, found: Sequence[Row], x: Figure, right: bool) -> None:
    axes.set_xscale("log")
    axes.margins(y=0.08)
    everywhere = [place for row in found if (place := x(row))]
    if everywhere:
        axes.set_xlim(min(everywhere) / MARGIN, max(everywhere) * MARGIN)
    names = [line for line in dict.fromkeys(row.line for row in found) if line != DENSE.line]
    ends: list[tuple[str, str, float, float]] = []
    for number, name in enumerate(names):
        apart = 1 + APART * (number - len(names) / 2)
        places = [
            (place * apart, estimate, row.setting)
            for row in found
            if row.line == name and (place := x(row)) and (estimate := _height(row, right))
        ]
        places.sort(key=lambda point: point[0])
        if not places:
            continue
        colour = COLOURS[number % len(COLOURS)]
        xs, ys = [p[0] for p in places], [100 * p[1].mean for p in places]
        # With few videos, an interval of quantiles may not contain the mean.
        below = [_length(p[1].low, p[1].mean) for p in places]
        above = [_length(p[1].mean, p[1].high) for p in places]
        axes.errorbar(
            xs,
            ys,
            yerr=(below, above),
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            linestyle="none" if name == STAGES else "-",
        )
        if name == STAGES:
            for place, estimate, setting in places:
                short = setting.removeprefix("stages ").removeprefix("stage ")
                at, away = (place, 100 * estimate.mean), (4, 4)
                axes.annotate(short, at, away, textcoords="offset points", fontsize=6, color=colour)
        ends.append((name, colour, xs[-1], ys[-1]))
    dense = next((row for row in found if row.line == DENSE.line and _height(row, right)), None)
    if dense is not None and (estimate := _height(dense, right)):
        level = 100 * estimate.mean
        axes.axhline(level, color=DENSE_COLOUR, linestyle="--", linewidth=1, zorder=0)
        if place := x(dense):
            axes.plot([place], [level], color=DENSE_COLOUR, marker="_", markersize=9)
        ends.append(("dense", DENSE_COLOUR, axes.get_xlim()[1], level))
    axes.grid(axis="y", color="#e2e5e8")
    axes.set_axisbelow(True)
    _label(axes, ends)


def _height(row: Row, right: bool) -> Estimate | None:
    return row.accuracy if right else row.agreement


def _label(axes: Any, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Labels right of the panel, in the order of the lines' ends, without overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    gap = LABELS_APART * (high - low)
    level = float("-inf")
    for name, colour, x, y in sorted(ends, key=lambda end: end[3]):
        level = max(y, level + gap)
        axes.annotate(
            name,
            (x, y),
            (1.02, level),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 0,
            },
        )


def _title(row: Row) -> str:
    chance = "" if row.chance is None else f", guessing {100 * row.chance:.0f} %"
    return f"{row.frames} frames, {row.questions} questions about {row.videos} videos{chance}"


def _length(low: float | None, high: float | None) -> float:
    """A length in per cent; NaN, which is not drawn, without an interval."""
    return math.nan if low is None or high is None else max(0.0, 100 * (high - low))


def _kib(value: float | None) -> float | None:
    return None if value is None else value / 1024


def _giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _tick(value: float, _place: object) -> str:
    return f"{value:,.10g}"
