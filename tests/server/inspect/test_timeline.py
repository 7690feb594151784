"""The picture of `metok inspect`: no overlaps, visible key events and strides."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from metok_vllm.config import METokConfig
from metok_vllm.events import adjacent_cosine, analyse
from metok_vllm.server.inspect.inspection import Inspection, build_inspection
from metok_vllm.server.inspect.timeline import draw_timeline, place_frames
from metok_vllm.server.inspect.timeline_chart import BAND, time_to_x
from metok_vllm.server.inspect.timeline_style import (
    KEY_COLOUR,
    MARGIN,
    OTHER_COLOUR,
    STRIDE_COLOURS,
    WIDTH,
    font,
    wrapped,
)
from tests.layouts import square

DURATION_S = 60.0


def synthetic(frames: int, config: METokConfig, question: str = "What?") -> Inspection:
    """An inspection of random scenes with clear cuts."""
    generator = torch.Generator().manual_seed(frames)
    scenes = torch.randn(config.num_events, 32, generator=generator)
    scene_T = torch.arange(frames) * config.num_events // frames
    feature_TD = scenes[scene_T] + 0.1 * torch.randn(frames, 32, generator=generator)
    relevance_T = torch.rand(frames, generator=generator)
    return build_inspection(
        analyse(feature_TD, relevance_T, config),
        adjacent_cosine(feature_TD).tolist(),
        range(frames),
        [DURATION_S * t / frames for t in range(frames)],
        DURATION_S,
        question=question,
        query_source="user_turn",
        video=square(frames, 14),
        config=config,
    )


def grey_frames(count: int, height: int = 90, width: int = 160) -> np.ndarray:
    return np.full((count, height, width, 3), 77, dtype=np.uint8)


@pytest.mark.parametrize("frames", [1, 2, 32, 128])
@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (4, 400)])
def test_every_number_of_frames_is_drawn(frames: int, shape: tuple[int, int]) -> None:
    image = draw_timeline(synthetic(frames, METokConfig()), grey_frames(frames, *shape))
    assert image.mode == "RGB"
    assert image.width == WIDTH
    pixels = np.asarray(image)
    shown = (pixels == 77).all(axis=-1).sum()
    assert shown >= frames * 8 * 8
    assert (pixels[-MARGIN // 2 :] == 255).all(), "the bottom margin is empty"
    assert (pixels[:, -MARGIN // 2 :] == 255).all(), "nothing runs out at the right"


@pytest.mark.parametrize("frames", [1, 7, 32, 65, 128])
@pytest.mark.parametrize("aspect", [0.1, 1.0, 16 / 9, 10.0])
def test_thumbnails_keep_time_order_and_do_not_overlap(frames: int, aspect: float) -> None:
    placed = place_frames(synthetic(frames, METokConfig(num_events=12)).frames, aspect)
    assert [item.frame.index for item in placed] == list(range(frames))
    for before, after in pairwise(placed):
        if before.row == after.row:
            assert before.left + before.width + 6 <= after.left
        else:
            assert after.row == before.row + 1
            assert after.left == MARGIN
    assert all(item.left + item.width + 6 <= WIDTH - MARGIN for item in placed)


def test_finer_strides_are_larger() -> None:
    placed = place_frames(synthetic(64, METokConfig()).frames, 16 / 9)
    areas: dict[int, set[int]] = {}
    for item in placed:
        areas.setdefault(item.frame.stride_class, set()).add(item.width * item.height)
    assert set(areas) == {0, 1, 2}
    assert min(areas[0]) > max(areas[1])
    assert min(areas[1]) > max(areas[2])


def test_key_events_differ_in_the_chart() -> None:
    inspection = synthetic(32, METokConfig())
    assert {event.key for event in inspection.events} == {True, False}
    image = draw_timeline(inspection, grey_frames(32))
    pixels = np.asarray(image)
    # The band of events is the only place where a whole row between the axes is coloured.
    coloured = [
        y
        for y in range(image.height)
        if all(tuple(pixels[y, x]) in (KEY_COLOUR, OTHER_COLOUR) for x in event_edges(inspection))
    ]
    assert len(coloured) >= BAND - 4
    y = coloured[1]
    for event in inspection.events:
        x = round(time_to_x(event.end_s, DURATION_S)) - 6
        assert tuple(pixels[y, x]) == (KEY_COLOUR if event.key else OTHER_COLOUR)


def event_edges(inspection: Inspection) -> list[int]:
    return [round(time_to_x(event.end_s, DURATION_S)) - 6 for event in inspection.events]


def test_thumbnail_borders_show_the_stride() -> None:
    inspection = synthetic(64, METokConfig())
    pixels = np.asarray(draw_timeline(inspection, grey_frames(64)))
    for colour in STRIDE_COLOURS:
        assert (pixels == colour).all(axis=-1).sum() > 200
    only_fine = METokConfig(key_event_ratio=1.0, key_frames_per_event=1.0)
    pixels = np.asarray(draw_timeline(synthetic(64, only_fine), grey_frames(64)))
    # What is left of the other two is the legend.
    for colour in STRIDE_COLOURS[1:]:
        assert (pixels == colour).all(axis=-1).sum() < 500


def test_a_question_of_any_length_fits() -> None:
    width = WIDTH - 2 * MARGIN
    for text in ("short", "word " * 200, "x" * 2000, "", "Was geschieht, während es schneit? 雪"):
        lines = wrapped(text, 32, width, max_lines=3)
        assert 1 <= len(lines) <= 3
        assert all(font(32, line).getlength(line) <= width for line in lines)
    assert wrapped("word " * 200, 32, width, max_lines=3)[-1].endswith("…")
    assert wrapped("two words", 32, width, max_lines=3) == ["two words"]
