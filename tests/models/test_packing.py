"""Stage 1 in layouts with newlines per row, per event and without, against the reference's loops.

Shape suffixes: T frames, P patches, D features, N tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metok_vllm.alignment import Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.models.packing import dense_tokens
from metok_vllm.models.request import EncodeRequest
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layout import AREA, AVERAGE, BILINEAR, VideoLayout
from tests.reference import stage1

GRID, WIDTH, FRAMES = 9, 12, 11
NEWLINES: dict[str, dict[str, Any]] = {
    stage1.EVENT: {"closes_events": True},
    stage1.ROW: {"row_newline": True},
    stage1.NOWHERE: {},
}
CHUNKS = {"in one chunk": 32, "in chunks": 4}
WHERE = pytest.mark.parametrize("where", NEWLINES)
# Selected tokens form no rows.
ENCODED = [
    (stages, reduce, where)
    for stages, reduce in (((1, 2, 3), POOL), ((1, 2, 3), SELECT), ((2, 3), POOL))
    for where in NEWLINES
    if (reduce, where) != (SELECT, stage1.ROW)
]
POOLING = pytest.mark.parametrize("pooling", [BILINEAR, AVERAGE, AREA])


def patches() -> torch.Tensor:
    return torch.randn(FRAMES, GRID**2, WIDTH, generator=torch.Generator().manual_seed(2))


def newline() -> torch.Tensor:
    return torch.linspace(-1, 1, WIDTH)


def layout(where: str, pooling: str) -> VideoLayout:
    return VideoLayout(FRAMES, GRID, GRID, pooling=pooling, **NEWLINES[where])


def encoder(chunk: int) -> Stage1Encoder:
    config = METokConfig(num_events=3, key_frames_per_event=2, encoder_chunk_frames=chunk)
    pixels = Normalisation((0.5,) * 3, (0.5,) * 3, GRID)
    return Stage1Encoder(config, lambda x, _: x, lambda x: x, pixels, None)


@POOLING
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("stages", "reduce", "where"), ENCODED)
def test_tokens_and_their_events(
    stages: tuple[int, ...], reduce: str, chunk: str, where: str, pooling: str
) -> None:
    made, x_TPD, video = encoder(CHUNKS[chunk]), patches(), layout(where, pooling)
    config = METokConfig(num_events=3, key_frames_per_event=2, stages=stages, reduce=reduce)
    request = EncodeRequest("video", config, ())
    given = newline() if where != stage1.NOWHERE else None
    tokens_ND = made.encode(x_TPD, given, request, video)
    report = made.events.report("video")
    assert report is not None
    events, classes, strides = report["event_of_frame"], report["class_of_frame"], (2, 4, 8)
    if 1 not in stages:
        classes, strides = [0] * FRAMES, (2, 2, 2)
    boundaries = events if 1 in stages else [0] * FRAMES
    packed = stage1.pack(
        x_TPD, classes, boundaries, newline(), GRID, strides, pooling, where, reduce=reduce
    )
    torch.testing.assert_close(tokens_ND, packed.tokens_ND, atol=1e-5, rtol=1e-5)
    assert len(tokens_ND) == video.tokens(config)
    found = made.token_events("video")
    assert found is not None
    expected = packed.event_of_token
    if 1 not in stages:
        each = stage1.frame_length(GRID, 2, pooling, where)
        expected = [event for event in events for _ in range(each)]
        expected += [events[-1]] * (where == stage1.EVENT)
    assert found.event_N.tolist() == expected


@POOLING
@WHERE
def test_the_dense_input(where: str, pooling: str) -> None:
    x_TPD, alike = patches(), [0] * FRAMES
    packed = stage1.pack(x_TPD, alike, alike, newline(), GRID, (2, 2, 2), pooling, where)
    given = newline() if where != stage1.NOWHERE else None
    found_ND = dense_tokens(x_TPD, given, layout(where, pooling))
    torch.testing.assert_close(found_ND, packed.tokens_ND, atol=1e-5, rtol=1e-5)


@WHERE
@pytest.mark.parametrize("rule", ["random", "evs", "vidcom2", "vcast", "fastv"])
def test_other_methods_have_as_many_tokens_as_planned(rule: str, where: str) -> None:
    config = METokConfig(rule=rule, rule_keep=0.3)
    given = newline() if where != stage1.NOWHERE else None
    video = layout(where, AVERAGE)
    request = EncodeRequest("video", config, ())
    assert len(encoder(32).encode(patches(), given, request, video)) == video.tokens(config)


@POOLING
def test_places_lie_beside_the_selected_tokens(pooling: str) -> None:
    """In every chunk: a model that positions tokens on the grid reads them."""
    video = layout(stage1.NOWHERE, pooling)
    request = EncodeRequest("video", METokConfig(), ())
    watch = Stopwatch(torch.device("cpu"))
    features, _ = encoder(4).video.features(
        patches(), video, (2, 4, 8), False, request, watch, SELECT
    )
    dense_TPD = dense_tokens(patches(), None, video).unflatten(0, (FRAMES, -1))
    frame_T1 = torch.arange(FRAMES)[:, None]
    for stride, parts in features.pooled.items():
        places_TK = torch.cat(features.places[stride])
        torch.testing.assert_close(torch.cat(parts), dense_TPD[frame_T1, places_TK])
