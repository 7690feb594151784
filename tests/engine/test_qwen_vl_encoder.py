"""Qwen2.5-VL and Qwen3-VL: events that stage 1 finds, and positions that the decoder gets.

Dense rows come from the engine's own tower. All that METok makes of them is done by naive code.

Shape suffixes: T frames, P features of a frame, D features, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.engine.mrope_expected import (
    kept_of,
    placed_media,
    rows_of_video,
)
from tests.engine.rendered import Rendered, render
from tests.engine.staged import StagedEngine
from tests.engine.staged_expected import config_of
from tests.engine.staged_prompts import OFF, QWEN, Clip, Parts, make_prompt
from tests.reference import mrope, stage1
from tests.reference.mrope import Positions
from tests.reference.qwen_vl_config import QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE

pytestmark = pytest.mark.slow

LENGTHS = (3, 6, 2, 5, 4)
# Partial cells; more frames than one chunk of the tower (16 temporal patches), and few.
OPTIONS = {"num_events": 4, "key_frames_per_event": 2}
PARTS: Parts = (9, Clip(5, LENGTHS, fps=2 / 0.37), 7, Clip(9, (2, 3), (64, 224)), 30)


@pytest.fixture(
    scope="module",
    params=[QWEN2_5_VL, QWEN3_VL, pytest.param(QWEN3_VL_MOE, marks=pytest.mark.thorough)],
)
def engine(
    request: pytest.FixtureRequest, mrope_engine: Callable[..., StagedEngine]
) -> StagedEngine:
    return mrope_engine(request.param)


def width_of(engine: StagedEngine) -> int:
    """Channels of a token's embedding; deepstack's features follow them."""
    return int(engine.model.config.get_text_config().hidden_size)


def both(engine: StagedEngine, parts: Parts, options: dict[str, Any]) -> tuple[Rendered, Rendered]:
    """A prompt with METok and its dense form."""
    on, off = (make_prompt(parts, given, media=QWEN) for given in (options, OFF))
    return render(engine, on), render(engine, off)


def positions(engine: StagedEngine, parts: Parts, options: dict[str, Any]) -> Positions:
    """The reference's, of the prompt that METok makes."""
    got, dense = both(engine, parts, options)
    config = config_of(engine, make_prompt(parts, options, media=QWEN))
    family = engine.model.config.model_type
    rotary, kept = kept_of(family, config, got, dense, width_of(engine))
    return mrope.kept_positions(rotary, kept)


def test_events_are_those_of_the_dense_features(engine: StagedEngine) -> None:
    """Deepstack's features have no say in them."""
    got, dense = both(engine, PARTS, OPTIONS)
    config = config_of(engine, make_prompt(PARTS, OPTIONS, media=QWEN))
    ratio, per_event = config.key_event_ratio, config.key_frames_per_event
    for number, (placed, medium) in enumerate(
        placed_media(engine.model.config.model_type, dense, "video")
    ):
        x_TPD = rows_of_video(dense, placed, medium)[..., : width_of(engine)]
        means = x_TPD.double().mean(1).tolist()
        events = stage1.event_of_frames(stage1.adjacent_cosines(means), config.num_events)
        relevance = stage1.fallback_relevance(means, events)
        natural = stage1.natural_classes(events, relevance, ratio, per_event)
        fine, medium_, _ = stage1.budget(len(means), config.num_events, ratio, per_event)
        decision = got.decisions[number]
        assert decision["event_of_frame"] == events
        assert decision["relevance_of_frame"] == pytest.approx(relevance, abs=2e-6)
        assert decision["class_of_frame"] == stage1.budgeted_classes(
            natural, relevance, fine, medium_
        )


# Positions far beyond bfloat16's 256.
LONG: dict[str, Parts] = {
    QWEN2_5_VL: (9, Clip(5, LENGTHS, (64, 96), fps=0.1), 300),
    QWEN3_VL: (9, Clip(5, (9, 9, 9, 9), (64, 224)), 300),
    QWEN3_VL_MOE: (9, Clip(5, (9, 9, 9, 9), (64, 224)), 300),
}


@pytest.mark.parametrize(
    ("dtype", "options"),
    [("float32", {}), ("bfloat16", {}), ("bfloat16", {"reduce": "select", "stages": [1]})],
)
def test_the_decoder_s_positions_are_exact(
    engine: StagedEngine,
    mrope_engine: Callable[..., StagedEngine],
    dtype: str,
    options: dict[str, Any],
) -> None:
    """Integers in any type, in all chunks of the prefill and in decoding."""
    family = engine.model.config.model_type
    engine = mrope_engine(family, dtype=dtype)
    expected = positions(engine, LONG[family], options)
    steps: list[Tensor] = []
    add = engine.model.add_offsets

    def record(positions_3N: Tensor) -> None:
        add(positions_3N)
        steps.append(positions_3N.clone())

    engine.reset_caches()
    with mock.patch.object(engine.model, "add_offsets", record):
        engine.answer_alone(make_prompt(LONG[family], options, media=QWEN), new_tokens=4)
    found = [tuple(column) for column in torch.cat(steps, dim=1).T.tolist()]
    assert found == [expected.at(index) for index in range(len(found))]
    assert len(found) == len(expected.places) + 3
    assert max(max(place) for place in expected.places) > 512
