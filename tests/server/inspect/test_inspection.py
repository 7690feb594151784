"""From an event map to what `metok inspect` reports."""

from __future__ import annotations

import pytest
import torch

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.events import EventMap
from metok_vllm.server.inspect.inspection import Inspection, build_inspection
from tests.layouts import square

# Six frames, two events: the first is key with two key frames; the budget moved frame 2 and 5.
EVENTS = EventMap(
    event_T=torch.tensor([0, 0, 0, 1, 1, 1]),
    relevance_T=torch.tensor([0.9, 0.8, 0.1, 0.3, 0.2, 0.0]),
    natural_T=torch.tensor([0, 0, 1, 1, 1, 2]),
    class_T=torch.tensor([0, 0, 0, 1, 2, 2]),
    key_E=torch.tensor([True, False]),
    event_relevance_E=torch.tensor([0.9, 0.3]),
)


def inspect(rule: str = "budgeted") -> Inspection:
    return build_inspection(
        EVENTS,
        [0.9, 0.8, 0.1, 0.9, 0.9],
        [0, 10, 20, 30, 40, 50],
        [0.5, 1.0, 2.0, 3.0, 4.0, 5.0],
        6.0,
        question="Q",
        query_source="user_turn",
        video=square(6, 14),
        config=METokConfig(num_events=2),
        rule=rule,
    )


def test_events_span_the_video() -> None:
    spans = [(e.start_s, e.end_s, e.key) for e in inspect().events]
    assert spans == [(0.5, 3.0, True), (3.0, 6.0, False)]


def test_frames_have_their_stride_and_relevance() -> None:
    frames = inspect().frames
    assert [f.index for f in frames] == [0, 10, 20, 30, 40, 50]
    assert [f.stride for f in frames] == [2, 2, 2, 4, 8, 8]
    assert [f.natural_stride for f in frames] == [2, 2, 4, 4, 4, 8]
    assert [f.key_frame for f in frames] == [True, True, False, True, True, False]


def test_counts_follow_the_rule() -> None:
    budgeted, natural = inspect(), inspect("natural")
    # A 14 x 14 grid pools to 49, 16 and 4 tokens; one newline closes each event.
    assert budgeted.encoded_tokens == 3 * 49 + 16 + 2 * 4 + 2
    assert natural.encoded_tokens == 2 * 49 + 3 * 16 + 4 + 2
    assert budgeted.dense_tokens == natural.dense_tokens == 6 * 49 + 1
    assert [f.stride for f in natural.frames] == [f.natural_stride for f in natural.frames]


def test_json_has_the_names_of_the_contract() -> None:
    document = inspect().to_dict()
    assert document["events"][0] == {
        "start_s": 0.5,
        "end_s": 3.0,
        "relevance": pytest.approx(0.9),
        "key": True,
    }
    assert set(document["frames"][0]) == {
        "index",
        "timestamp_s",
        "event",
        "relevance",
        "stride",
        "natural_stride",
        "key_frame",
    }
    assert document["visual_tokens"] == {"dense": 295, "encoded": 173}


def test_unknown_rule() -> None:
    with pytest.raises(ConfigError, match="budgeted, natural"):
        inspect("fancy")


@pytest.mark.parametrize("frames", [1, 2, 5, 32])
def test_token_counts_are_those_the_server_lays_out(frames: int) -> None:
    from tests.server.inspect.test_timeline import synthetic

    config = METokConfig()
    inspection = synthetic(frames, config)
    assert inspection.encoded_tokens == square(frames, 14).encoded_tokens(config)
    assert inspection.dense_tokens == square(frames, 14).dense_tokens()
