from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

from metok_vllm import metrics
from metok_vllm.config import METokConfig
from metok_vllm.plan.prompt import Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan

VIDEO = VideoPlan("a", 4, (0.0, 1.0, 2.0, 3.0), 4.0, 100, 40)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_request_counts_its_tokens() -> None:
    before = {
        p: value("metok_visual_tokens_total", point=p) for p in ("dense", "encoded", "stage1")
    }
    requests = value("metok_requests_total", preset="balanced")
    metrics.count_request(RequestPlan("balanced", (1,), "user_turn", (VIDEO, VIDEO)))
    assert value("metok_requests_total", preset="balanced") == requests + 1
    assert value("metok_visual_tokens_total", point="dense") == before["dense"] + 200
    assert value("metok_visual_tokens_total", point="encoded") == before["encoded"] + 80
    assert value("metok_visual_tokens_total", point="stage1") == before["stage1"] + 80


def test_a_dense_request_counts_as_off() -> None:
    off, stage1 = (
        value("metok_requests_total", preset="off"),
        value("metok_visual_tokens_total", point="stage1"),
    )
    metrics.count_request(RequestPlan("balanced", (), "none", (VIDEO,)))
    assert value("metok_requests_total", preset="off") == off + 1
    assert value("metok_visual_tokens_total", point="stage1") == stage1


def test_a_request_of_another_rule_counts_under_its_name() -> None:
    before = [value("metok_requests_total", preset=name) for name in ("evs", "balanced", "off")]
    metrics.count_request(RequestPlan("balanced", (), "none", (VIDEO,), "evs"))
    after = [value("metok_requests_total", preset=name) for name in ("evs", "balanced", "off")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("stages", "stage2", "stage3"),
    [
        ((1, 2, 3), 14, 7),  # 0.76 ** 2 of the 24 in key events; a quarter of the first 25
        ((1, 2), 14, None),
        ((1, 3), None, 10),
        ((1,), None, None),
    ],
)
def test_points_of_the_stages_a_request_went_through(
    stages: tuple[int, ...], stage2: int | None, stage3: int | None
) -> None:
    pruning = Pruning.of(METokConfig(stages=stages, decode_keep=0.25), Fraction(3, 5))
    video = VideoPlan("a", 4, (0.0, 1.0, 2.0, 3.0), 4.0, 100, 40, 4, pruning)
    plan = RequestPlan("balanced", stages, "user_turn", (video,))
    before = [value("metok_visual_tokens_total", point=p) for p in ("stage2", "stage3")]
    metrics.count_request(plan, plan.prompt_plan(64))
    after = [value("metok_visual_tokens_total", point=p) for p in ("stage2", "stage3")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [stage2 or 0, stage3 or 0]


def test_the_names_dashboards_are_written_against() -> None:
    metrics.observe_video_read(0.2, cached=False)
    metrics.observe_video_read(0.0, cached=True)
    metrics.count_rejected("too_large")
    metrics.count_fallback("no_towers")
    metrics.set_blocks_held(7)
    metrics.count_blocks_freed(3)
    text = generate_latest().decode()
    for line in (
        'metok_media_rejected_total{reason="too_large"}',
        'metok_fallbacks_total{reason="no_towers"}',
        "metok_video_decode_seconds_count",
        "metok_frame_cache_hits_total 1.0",
        "# TYPE metok_kv_blocks_freed_total counter",
        "# TYPE metok_kv_blocks_held gauge",
        "metok_kv_blocks_held 7.0",
    ):
        assert line in text


def test_several_api_servers_share_their_metrics(tmp_path: Path) -> None:
    """All servers read the same engines: the gauge is the latest value, the counter the sum."""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(code: str) -> str:
        command = [sys.executable, "-c", f"from metok_vllm import metrics; {code}"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return done.stdout

    run("metrics.set_blocks_held(5); metrics.count_blocks_freed(4)")
    run("metrics.set_blocks_held(3); metrics.count_blocks_freed(2)")
    text = run(
        "import prometheus_client as p, prometheus_client.multiprocess as m; "
        "r = p.CollectorRegistry(); m.MultiProcessCollector(r); "
        "print(p.generate_latest(r).decode())"
    )
    assert "metok_kv_blocks_held 3.0" in text
    assert "metok_kv_blocks_freed_total 6.0" in text
