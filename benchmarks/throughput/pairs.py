"""Two servers side by side: speed ratios of their common rounds, with the agreement of answers.

A ratio above 1 favours the second server. There is no ratio without an agreement for the same
requests, none if a request failed (refused work looks fast), and none if an accuracy was required
and could not be measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metok_vllm.benchmarks.throughput.agreement import Agreement, agreement
from metok_vllm.benchmarks.throughput.measures import Measures, Spread
from metok_vllm.benchmarks.throughput.run import Cell

Figure = Callable[[Measures], float | None]


def _spread(name: str, quantile: str) -> Figure:
    def figure(measures: Measures) -> float | None:
        spread: Spread = getattr(measures, name)
        value: float | None = getattr(spread, quantile)
        return value

    return figure


# Of rates more is better. Ratios of times are inverted, so that 2 always means twice as good.
RATES: dict[str, Figure] = {
    "requests_per_s": lambda m: m.requests_per_s,
    "video_seconds_per_s": lambda m: m.video_seconds_per_s,
    "output_tokens_per_s": lambda m: m.output_tokens_per_s,
}
TIMES: dict[str, Figure] = {
    f"{name}_{quantile}": _spread(name, quantile)
    for name in ("ttft_s", "per_output_token_s", "inter_token_s", "end_to_end_s")
    for quantile in ("p50", "p90", "p99")
}


@dataclass(frozen=True)
class Ratio:
    """The ratio of each round, and the median."""

    rounds: tuple[float, ...]
    median: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two servers in a cell. Without `ratios`, `refused` gives the reason."""

    plain: str
    other: str
    ratios: dict[str, Ratio]
    agreement: Agreement | None
    refused: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(cell: Cell, names: Sequence[str], lacks: str | None = None) -> Comparison | None:
    """The second server compared with the first; None unless there are two.

    `lacks` is the reason why a required accuracy is missing.
    """
    if len(names) != 2:
        return None
    plain, other = names
    answers = agreement(*([o for r in cell.rounds for o in r[name].outcomes] for name in names))
    failed = {
        name: sum(r[name].measures.sent - r[name].measures.answered for r in cell.rounds)
        for name in names
    }
    refused = None
    if any(failed.values()):
        counts = ", ".join(f"{count} of {name}" for name, count in failed.items() if count)
        refused = f"requests failed: {counts}"
    elif answers is None:
        refused = "no answers to compare"
    elif lacks is not None:
        refused = lacks
    ratios = {} if refused else _ratios(cell, plain, other)
    return Comparison(plain, other, ratios, answers, refused)


def _ratios(cell: Cell, plain: str, other: str) -> dict[str, Ratio]:
    found = {}
    for name, figure in (RATES | TIMES).items():
        values = []
        for runs in cell.rounds:
            above, below = figure(runs[other].measures), figure(runs[plain].measures)
            if name in TIMES:
                above, below = below, above
            if above is not None and below:
                values.append(above / below)
        if len(values) == len(cell.rounds) and values:
            found[name] = Ratio(tuple(values), statistics.median(values))
    return found
