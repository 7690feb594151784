"""The sensitivity curves as a picture, drawn from the JSON alone.

Needs matplotlib (`pip install "metok-vllm[bench]"`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.throughput.charts import NoMatplotlib

Record = Mapping[str, Any]

# Told apart by colour-blind readers (Okabe and Ito).
DROP, DECODE, BUDGET = "#0072b2", "#d55e00", "#8a9199"
RATIO_COLOURS = ("#009e73", "#56b4e9", "#e69f00", "#cc79a7")
SUFFIXES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
LEAST = 1e-6  # nats; what is below is drawn here, as noise


def draw_chart(record: Record, path: Path) -> None:
    """Divergence over the layer from which tokens go, and the boundaries that were chosen.

    Raises NoMatplotlib where it cannot draw, OSError where it cannot write, ValueError for a
    picture that matplotlib refuses to draw. `path` ends as one of SUFFIXES.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise NoMatplotlib("matplotlib is missing: pip install 'metok-vllm[bench]'") from error
    figure = Figure(figsize=(9, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    curves = record["curves"]
    _line(axes, curves["drop"], "first", DROP, "-", "o", "all dropped from k on: first token")
    _line(axes, curves["drop"], "following", DROP, "--", "", "all dropped from k on: following")
    _line(axes, curves["decode"], "following", DECODE, "--", "s", "decoding sees text from k on")
    for (ratio, curve), colour in zip(curves["first"].items(), RATIO_COLOURS, strict=False):
        _line(axes, curve, "worst", colour, ":", "", f"selected at k as at p0, ratio {ratio}")
    for name, preset in record["presets"].items():
        axes.axhline(preset["budget"], color=BUDGET, linewidth=0.8)
        chosen = preset["config"]
        layers = "none" if chosen is None else ", ".join(map(str, chosen["pruning_layers"]))
        # Curves fall from left to right, so that there is room on the left.
        axes.annotate(
            f"{name}: {layers}", (0, max(preset["budget"], LEAST)), fontsize=7, va="bottom"
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST)
    axes.set_xlabel("decoder layer k")
    axes.set_ylabel("KL(dense || pruned), nats a token")
    axes.set_title(f"{record['prompts']} prompts", loc="left", fontsize=10)
    axes.grid(axis="y", color="#e2e5e8")
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, frameon=False, loc="lower left")
    figure.savefig(path)


def _line(
    axes: Any, curve: Sequence[Record], value: str, colour: str, dash: str, marker: str, label: str
) -> None:
    layers = [point["layer"] for point in curve]
    worst = [
        max(point["first"], point["following"]) if value == "worst" else point[value]
        for point in curve
    ]
    heights = [max(height, LEAST) for height in worst]
    axes.plot(layers, heights, color=colour, linestyle=dash, marker=marker or None, label=label)
