"""The savings of one answer as text: by layer, and the reasons for less."""

from __future__ import annotations

from typing import Any

import pytest

from metok_vllm.server.savings import blocks_line, deeper_layers, events_line, unpruned_line


@pytest.mark.parametrize(
    ("layers", "stages", "rows"),
    [
        ([2, 4, 6], [9, 5, 3, 0], [("2", 5), ("4", 3), ("6", 0)]),
        ([2, 4, 6], [9], []),  # the request was not pruned
        ([2, 4, 6], [], []),  # METok was off for it
        (None, [9], []),  # the server runs stage 1 alone
        (None, [], []),
    ],
)
def test_tokens_by_layer(layers: list[int] | None, stages: list[int], rows: list[Any]) -> None:
    report = {"pruning_layers": layers, "visual_tokens": {"stages": stages}}
    assert deeper_layers(report) == [(f"  from layer {n} on", kept) for n, kept in rows]


def test_a_report_without_layers() -> None:
    assert deeper_layers({"visual_tokens": {"dense": 3, "encoded": 2}}) == []
    assert unpruned_line({}) is None


def test_why_the_decoder_pruned_less() -> None:
    assert unpruned_line({"unpruned": None}) is None
    assert "log-probabilities" in str(unpruned_line({"unpruned": "prompt_logprobs"}))
    assert "asks for" in str(unpruned_line({"unpruned": "prompt_logprobs"}))
    assert "a new reason" in str(unpruned_line({"unpruned": "a new reason"}))


def test_numbers_that_are_null_are_shown_as_unknown() -> None:
    events = [
        {"start_s": 0.0, "end_s": 1.25, "relevance": None, "key": True},
        {"start_s": None, "end_s": None, "relevance": 0.5, "key": False},
        {},
    ]
    assert events_line({"events": events}) == (
        "events: 0.0-1.2 s (key event, relevance ?), ?-? s (relevance 0.500), ?-? s (relevance ?)"
    )
    assert events_line({"events": None}) == "events: none reported"


@pytest.mark.parametrize(("prefill", "decode", "explained"), [(134, 136, True), (24, 14, False)])
def test_more_blocks_for_decoding_are_explained(prefill: int, decode: int, explained: bool) -> None:
    blocks = {"dense": 200, "prefill": prefill, "decode": decode}
    assert (blocks_line({"kv_blocks": blocks}) is not None) is explained
