"""Exact figures of runs made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from metok_vllm.benchmarks.client.scrape import Scrapes, Snapshot
from metok_vllm.benchmarks.throughput.load import LoadRun
from metok_vllm.benchmarks.throughput.measures import kv_use, measure
from metok_vllm.benchmarks.throughput.split import time_split
from metok_vllm.benchmarks.throughput.spread import Spread
from tests.benchmarks.throughput.experiments import outcome

EMPTY = Spread(0, None, None, None, None)


def test_percentiles_are_interpolated() -> None:
    assert Spread.of(float(n) for n in range(1, 102)) == Spread(101, 51, 51, 91, 100)
    assert Spread.of([1.0, 2.0]).p50 == 1.5
    assert Spread.of([]) == EMPTY


def test_rates_count_from_first_sent_to_last_answered() -> None:
    run = LoadRun(
        (
            outcome("a", 10.0, (11.0, 11.5, 12.0), ended_s=12.1),
            outcome("b", 11.0, (14.0, 14.5, 15.0), ended_s=15.0),
            # A failed request gives neither tokens nor time.
            outcome("c", 5.0, (), ended_s=90.0, error="429"),
        ),
        (0.001,),
    )
    figures = measure(run, Scrapes())
    assert (figures.sent, figures.answered, figures.errors) == (3, 2, {"429": 1})
    assert figures.duration_s == 5.0
    assert figures.requests_per_s == pytest.approx(2 / 5)
    assert figures.video_seconds_per_s == pytest.approx(8 / 5)
    assert figures.output_tokens_per_s == pytest.approx(6 / 5)
    assert figures.ttft_s == Spread.of([1.0, 3.0])
    assert figures.inter_token_s == Spread.of([0.5] * 4)
    assert figures.per_output_token_s == Spread.of([0.5] * 2)
    assert figures.end_to_end_s == Spread.of([2.0, 4.0])
    assert figures.prompt_tokens == 100


def test_several_tokens_in_a_chunk_share_its_time() -> None:
    figures = measure(LoadRun((outcome(completion_tokens=5),), ()), Scrapes())
    assert figures.per_output_token_s.p50 == pytest.approx(1.0 / 4)
    assert figures.inter_token_s.p50 == 0.5


def test_ttft_by_question_and_kind() -> None:
    run = LoadRun(
        (
            outcome("a", times_s=(4.0,)),
            outcome("b", times_s=(1.0,), question=1),
            outcome("c", times_s=(0.5,), kind="text"),
        ),
        (),
    )
    figures = measure(run, Scrapes())
    assert {k: s.p50 for k, s in figures.ttft_by_question_s.items()} == {"first": 4.0, "next": 1.0}
    assert {k: s.p50 for k, s in figures.ttft_by_kind_s.items()} == {"video": 2.5, "text": 0.5}


def test_nothing_answered() -> None:
    figures = measure(LoadRun((outcome(times_s=(), error="down"),), ()), Scrapes())
    assert figures.requests_per_s == 0
    assert figures.ttft_s == EMPTY
    assert figures.split is None
    json.dumps(asdict(figures), allow_nan=False)


def test_reports_are_averaged() -> None:
    def report(dense: int, stages: list[int]) -> dict[str, object]:
        return {
            "visual_tokens": {"dense": dense, "stages": stages},
            "kv_blocks": {"decode": 3},
            "decoder_prefill_flops": {"dense": 8, "metok": 2},
            "fallback": "no_towers",
            "unpruned": None,
        }

    outcomes = (outcome(metok=report(10, [4, 2])), outcome(metok=report(20, [6, 0])), outcome())
    figures = measure(LoadRun(outcomes, ()), Scrapes())
    assert figures.reports == {
        "count": 2,
        "visual_tokens": {"dense": 15, "stages": [5, 1]},
        "kv_blocks": {"decode": 3},
        "decoder_prefill_flops": {"dense": 8, "metok": 2},
        "fallback": {"no_towers": 2},
        "unpruned": {},
    }


def test_kv_over_time() -> None:
    during = [
        Snapshot.parse(
            100.0 + n, f"vllm:kv_cache_usage_perc {usage}\nmetok_kv_blocks_held {held}\n"
        )
        for n, (usage, held) in enumerate([(0.0, 0), (0.5, 40), (0.25, 20)])
    ]
    kv = kv_use(Scrapes(during=during))
    assert kv is not None
    assert (kv["usage_peak"], kv["usage_mean"], kv["held_peak"]) == (0.5, 0.25, 40)
    assert kv["usage_over_time"] == [(0.0, 0.0), (1.0, 0.5), (2.0, 0.25)]
    assert kv_use(Scrapes()) is None


def metrics(count: int, **seconds: float) -> str:
    """vLLM's histograms after `count` requests that took these seconds each."""
    lines = []
    for name, each in seconds.items():
        if name.startswith("stage_"):
            full, labels = "metok_stage", f'{{stage="{name.removeprefix("stage_")}"}}'
        else:
            full, labels = f"metok_{name}" if name == "video_decode" else f"vllm:{name}", ""
        lines += [
            f"{full}_seconds_sum{labels} {each * count}",
            f"{full}_seconds_count{labels} {count}",
        ]
    return "\n".join(lines) + "\n"


STOCK = {
    "time_to_first_token": 3.0,
    "e2e_request_latency": 5.0,
    "request_queue_time": 0.5,
    "request_prefill_time": 1.5,
    "request_decode_time": 1.9,
}


def split_of(**more: float) -> dict[str, float | None]:
    before = Snapshot.parse(0, metrics(10, **STOCK, **more))
    after = Snapshot.parse(9, metrics(14, **STOCK, **more))
    outcomes = [outcome(times_s=(3.1, 5.2), ended_s=5.2)] * 4
    split = time_split(outcomes, Scrapes(before, after))
    assert split is not None
    assert split.requests == 4
    assert split.end_to_end_s == pytest.approx(5.2)
    # 1.0 before the queue, 0.5 in it, 1.5 and 1.9 in the engine.
    assert split.explained == pytest.approx(4.9 / 5.2)
    assert sum(s for s in split.parts_s.values() if s is not None) == pytest.approx(5.2)
    return split.parts_s


def test_the_split_of_plain_vllm() -> None:
    assert split_of() == pytest.approx(
        {
            "video_decoding": None,
            "fetch_preprocessing": 1.0,
            "queue": 0.5,
            "vision_stage1": None,
            "decoder_prefill": 1.5,
            "decode": 1.9,
            "unexplained": 0.3,
        }
    )


def test_the_split_of_metok_is_finer() -> None:
    parts = split_of(video_decode=0.4, stage_1=0.6, stage_1_own=0.1, stage_2=0.2, stage_prefill=0.8)
    assert parts["video_decoding"] == pytest.approx(0.4)
    assert parts["fetch_preprocessing"] == pytest.approx(0.6)
    assert parts["vision_stage1"] == pytest.approx(0.6)
    assert parts["decoder_prefill"] == pytest.approx(0.9)


def test_metoks_own_shares_of_the_prefill() -> None:
    before = Snapshot.parse(0, metrics(10, **STOCK))
    own = {"stage_1": 0.6, "stage_1_own": 0.03, "stage_2": 0.02, "stage_prefill": 0.4}
    outcomes = [outcome(times_s=(3.1, 5.2), ended_s=5.2)] * 4

    def of_prefill(**seconds: float) -> dict[str, float]:
        after = Snapshot.parse(9, metrics(14, **STOCK, **seconds))
        split = time_split(outcomes, Scrapes(before, after))
        assert split is not None
        return split.of_prefill

    assert of_prefill(**own) == pytest.approx({"stage1": 0.03, "stage2": 0.02})
    assert of_prefill() == {}
    # Without stage 1 there is no clock of its encoding.
    assert of_prefill(stage_2=0.02, stage_prefill=0.4) == pytest.approx(
        {"stage1": 0.0, "stage2": 0.05}
    )


def test_no_clocks_no_split() -> None:
    one = Snapshot.parse(0, "other 1\n")
    assert time_split([outcome()], Scrapes(one, one)) is None
    assert time_split([outcome()], Scrapes()) is None
