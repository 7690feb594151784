"""Figures of a run by turn of the conversation, and over the rounds.

A group is a turn number. Turns about a video that an earlier conversation asked about are a group
of their own, because a cache may know the video from the first turn on.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.throughput.spread import Spread

SHARED = ", shared video"


@dataclass(frozen=True)
class Turn:
    """Answered requests of one group; tokens are means.

    `cached_tokens` is None unless the server reports it for every request.
    """

    answered: int
    ttft_s: Spread
    end_to_end_s: Spread
    prompt_tokens: float
    cached_tokens: float | None

    def figures(self) -> dict[str, float | None]:
        """The figures of the tables by name; times are medians over the requests."""
        return {
            "ttft_s_p50": self.ttft_s.p50,
            "end_to_end_s_p50": self.end_to_end_s.p50,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
        }


def by_turn(answered: Iterable[Outcome]) -> dict[str, Turn]:
    """The groups of a run's answered requests about videos: "turn 1", "turn 2", ..."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in answered:
        if outcome.kind == "video":
            groups.setdefault(group_of(outcome), []).append(outcome)
    return {name: _turn(groups[name]) for name in sorted(groups, key=_order)}


def group_of(outcome: Outcome) -> str:
    """The group of one outcome; turns count from 1."""
    return f"turn {outcome.turn + 1}" + SHARED * bool(outcome.question)


def over_rounds(rounds: Sequence[Mapping[str, Turn]]) -> dict[str, dict[str, Mapping[str, float]]]:
    """By group and figure: `median`, `low` and `high` over the rounds.

    What a round lacks is left out: a median over fewer rounds is not comparable.
    """
    common = [name for name in (rounds[0] if rounds else ()) if all(name in r for r in rounds)]
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name in common:
        rows = [turns[name].figures() for turns in rounds]
        found[name] = {}
        for figure in rows[0]:
            values = [value for row in rows if (value := row[figure]) is not None]
            if len(values) == len(rounds):
                median = statistics.median(values)
                found[name][figure] = {"median": median, "low": min(values), "high": max(values)}
    return found


def cached_tokens(outcomes: Sequence[Outcome]) -> float | None:
    """The mean number of prompt tokens from the prefix cache; None if one is unknown."""
    known = [o.cached_tokens for o in outcomes if o.cached_tokens is not None]
    return statistics.fmean(known) if known and len(known) == len(outcomes) else None


def _turn(outcomes: Sequence[Outcome]) -> Turn:
    return Turn(
        answered=len(outcomes),
        ttft_s=Spread.of(o.ttft_s for o in outcomes if o.ttft_s is not None),
        end_to_end_s=Spread.of(o.end_to_end_s for o in outcomes),
        prompt_tokens=statistics.fmean(o.prompt_tokens for o in outcomes),
        cached_tokens=cached_tokens(outcomes),
    )


def _order(name: str) -> tuple[int, bool]:
    return int(name.removesuffix(SHARED).split()[1]), name.endswith(SHARED)
