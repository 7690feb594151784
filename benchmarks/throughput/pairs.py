"""Two servers side by side: ratios of the rounds they shared, with the quality beside them.

A ratio above 1 is in favour of the second server. There is none without an agreement figure for
the same requests, none where a request failed (a server that refuses work looks fast), and none
where right answers were to be counted and could not be.
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


# More is better, then less is better: those are turned round, so that 2 reads "twice as good".
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
    """A ratio pair by pair, and its median."""

    rounds: tuple[float, ...]
    median: float


@dataclass(frozen=True)
class Comparison:
    """What a pair of servers came to in a cell. `ratios` is empty where `refused` says why."""

    plain: str
    other: str
    ratios: dict[str, Ratio]
    agreement: Agreement | None
    refused: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def compare(cell: Cell, names: Sequence[str], lacks: str | None = None) -> Comparison | None:
    """The second of two servers against the first; None where there are not two.

    `lacks` says why a figure of their right answers that was asked for is not there.
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
