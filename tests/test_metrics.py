from __future__ import annotations

from prometheus_client import REGISTRY, generate_latest

from metok_vllm import metrics
from metok_vllm.plan import RequestPlan, VideoPlan

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


def test_the_names_dashboards_are_written_against() -> None:
    metrics.observe_decode(0.2)
    metrics.count_rejected("too_large")
    metrics.count_fallback("no_towers")
    text = generate_latest().decode()
    for line in (
        'metok_media_rejected_total{reason="too_large"}',
        'metok_fallbacks_total{reason="no_towers"}',
        "metok_video_decode_seconds_count",
    ):
        assert line in text
