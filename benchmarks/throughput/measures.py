"""Figures of one run on one server, from the outcomes of its requests and its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metok_vllm.benchmarks.client.processes import HostUse
from metok_vllm.benchmarks.client.scrape import (
    HELD,
    PREEMPTIONS,
    RUNNING,
    USAGE,
    WAITING,
    Scrapes,
)
from metok_vllm.benchmarks.client.stream import Outcome
from metok_vllm.benchmarks.throughput.load import LoadRun
from metok_vllm.benchmarks.throughput.split import TimeSplit, time_split
from metok_vllm.benchmarks.throughput.spread import Spread
from metok_vllm.benchmarks.throughput.turns import Turn, by_turn, cached_tokens


@dataclass(frozen=True)
class Measures:
    """One run. Rates count answered requests from the first sent to the last answered.

    `inter_token_s` are the gaps between chunks with tokens. `per_output_token_s` is a request's
    time after its first token over the number of its other tokens. `ttft_by_kind_s` is by text,
    image and video, `ttft_by_question_s` by first and next questions about a video, `by_turn` has
    the turns of conversations. `cached_tokens` is a mean. `reports` are the means of METok's
    reports.
    """

    sent: int
    answered: int
    errors: Mapping[str, int]
    duration_s: float
    requests_per_s: float
    video_seconds_per_s: float
    output_tokens_per_s: float
    prompt_tokens: float | None
    cached_tokens: float | None
    ttft_s: Spread
    inter_token_s: Spread
    per_output_token_s: Spread
    end_to_end_s: Spread
    ttft_by_kind_s: Mapping[str, Spread]
    ttft_by_question_s: Mapping[str, Spread]
    by_turn: Mapping[str, Turn]
    kv: Mapping[str, Any] | None
    preemptions: float | None
    reports: Mapping[str, Any] | None
    split: TimeSplit | None
    host: HostUse | None
    host_cores: float | None
    client_lag_s: Spread

    def rates(self) -> dict[str, float]:
        """The figures of which more is better, by name."""
        return {
            "requests_per_s": self.requests_per_s,
            "video_seconds_per_s": self.video_seconds_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
        }

    def times(self) -> dict[str, float | None]:
        """The figures of which less is better, by name."""
        spreads = {
            "ttft_s": self.ttft_s,
            "per_output_token_s": self.per_output_token_s,
            "inter_token_s": self.inter_token_s,
            "end_to_end_s": self.end_to_end_s,
        }
        return {
            f"{name}_{quantile}": value
            for name, spread in spreads.items()
            for quantile, value in (("p50", spread.p50), ("p90", spread.p90), ("p99", spread.p99))
        }


def measure(run: LoadRun, scrapes: Scrapes, host: HostUse | None = None) -> Measures:
    """All figures of a run. Failed requests count only in `errors`."""
    answered = [outcome for outcome in run.outcomes if outcome.error is None]
    duration_s = _duration_s(answered)
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    by_kind: dict[str, list[Outcome]] = {}
    by_question: dict[str, list[Outcome]] = {}
    for outcome in answered:
        by_kind.setdefault(outcome.kind, []).append(outcome)
        if outcome.kind == "video":
            position = "next" if outcome.question or outcome.turn else "first"
            by_question.setdefault(position, []).append(outcome)
    return Measures(
        sent=len(run.outcomes),
        answered=len(answered),
        errors=_counts(o.error for o in run.outcomes),
        duration_s=duration_s,
        requests_per_s=len(answered) * per_s,
        video_seconds_per_s=sum(o.video_seconds for o in answered) * per_s,
        output_tokens_per_s=sum(o.completion_tokens for o in answered) * per_s,
        prompt_tokens=_mean([o.prompt_tokens for o in answered]),
        cached_tokens=cached_tokens(answered),
        ttft_s=Spread.of(_ttfts(answered)),
        inter_token_s=Spread.of(gap for o in answered for gap in np.diff(o.token_times_s)),
        per_output_token_s=Spread.of(_per_output_token(answered)),
        end_to_end_s=Spread.of(o.end_to_end_s for o in answered),
        ttft_by_kind_s={kind: Spread.of(_ttfts(some)) for kind, some in by_kind.items()},
        ttft_by_question_s={nth: Spread.of(_ttfts(some)) for nth, some in by_question.items()},
        by_turn=by_turn(answered),
        kv=kv_use(scrapes),
        preemptions=scrapes.rise(PREEMPTIONS),
        reports=_reports(answered),
        split=time_split(run.outcomes, scrapes),
        host=host,
        host_cores=None if host is None else host.cores,
        client_lag_s=Spread.of(run.client_lag_s),
    )


def kv_use(scrapes: Scrapes) -> dict[str, Any] | None:
    """KV blocks over time; None if the server does not report them.

    `usage` is the used share of the pool, which is comparable between servers with other block
    sizes. `held` are the blocks of METok's requests alone.
    """
    usage = scrapes.over_time(USAGE)
    if not usage:
        return None
    start_s = usage[0][0]
    held = [value for _, value in scrapes.over_time(HELD)]
    return {
        "pool": scrapes.pool(),
        "usage_peak": max(value for _, value in usage),
        "usage_mean": _mean([value for _, value in usage]),
        "held_peak": max(held) if held else None,
        "running_peak": max((v for _, v in scrapes.over_time(RUNNING)), default=None),
        "waiting_peak": max((v for _, v in scrapes.over_time(WAITING)), default=None),
        "usage_over_time": [(round(time_s - start_s, 3), value) for time_s, value in usage],
    }


def _duration_s(answered: Sequence[Outcome]) -> float:
    if not answered:
        return 0.0
    return max(o.ended_s for o in answered) - min(o.started_s for o in answered)


def _ttfts(outcomes: Iterable[Outcome]) -> list[float]:
    return [outcome.ttft_s for outcome in outcomes if outcome.ttft_s is not None]


def _per_output_token(answered: Iterable[Outcome]) -> list[float]:
    return [
        (outcome.end_to_end_s - outcome.ttft_s) / (outcome.completion_tokens - 1)
        for outcome in answered
        if outcome.ttft_s is not None and outcome.completion_tokens > 1
    ]


def _reports(answered: Iterable[Outcome]) -> dict[str, Any] | None:
    """Means of the numbers in METok's reports; lists by stage are averaged per stage."""
    reports = [outcome.metok for outcome in answered if outcome.metok is not None]
    if not reports:
        return None
    means: dict[str, Any] = {"count": len(reports)}
    for group in ("visual_tokens", "kv_blocks", "decoder_prefill_flops"):
        first = reports[0].get(group) or {}
        means[group] = {name: _mean_of([r[group][name] for r in reports]) for name in first}
    for name in ("fallback", "unpruned"):
        means[name] = _counts(report.get(name) for report in reports)
    return means


def _counts(reasons: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(reason for reason in reasons if reason is not None))


def _mean_of(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], list):
        return _mean(values)
    if len({len(value) for value in values}) > 1:
        return None  # requests with different stages
    return [_mean(column) for column in zip(*values, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
