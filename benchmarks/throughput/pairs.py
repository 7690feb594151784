"""Two servers side by side: speed ratios of their common rounds, with the agreement of answers.

A ratio above 1 favours the second server. There is no ratio without an agreement for the same
requests, and none if a request failed, because refused work looks fast. There is none either if a
required accuracy could not be measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.throughput.agreement import Agreement, agreement
from metok_vllm.benchmarks.throughput.measures import Measures
from metok_vllm.benchmarks.throughput.run import Cell


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


def comparisons(cell: Cell, names: Sequence[str], lacks: str | None = None) -> list[Comparison]:
    """The last server compared with each of the others, in their order."""
    return [compare(cell, (name, names[-1]), lacks) for name in names[:-1]]


def compare(cell: Cell, names: tuple[str, str], lacks: str | None = None) -> Comparison:
    """The second server compared with the first.

    `lacks` is the reason why a required accuracy is missing.
    """
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
    """The ratios of all figures that every round has."""
    by_round = [_round_ratios(runs[plain].measures, runs[other].measures) for runs in cell.rounds]
    found = {}
    for name in by_round[0] if by_round else ():
        values = tuple(ratios[name] for ratios in by_round if name in ratios)
        if len(values) == len(by_round):
            found[name] = Ratio(values, statistics.median(values))
    return found


def _round_ratios(plain: Measures, other: Measures) -> dict[str, float]:
    # Of rates more is better. Ratios of times are inverted, so that 2 always means twice as good.
    rates, times = plain.rates(), plain.times()
    found = {name: rate / rates[name] for name, rate in other.rates().items() if rates[name]}
    for name, time_s in other.times().items():
        plain_s = times[name]
        if plain_s is not None and time_s:
            found[name] = plain_s / time_s
    for group, turn in other.by_turn.items():
        of_plain, of_other = plain.by_turn.get(group), turn.ttft_s.p50
        if of_plain is not None and of_plain.ttft_s.p50 is not None and of_other:
            found[f"ttft_s_p50, {group}"] = of_plain.ttft_s.p50 / of_other
    return found
