"""Counts of a video's tokens in every layout, against sequences that the reference packs."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metok_vllm.config import METokConfig
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import AREA, AVERAGE, VideoLayout
from metok_vllm.plan.prompt import Pruning
from tests.layouts import QWEN2_5_VL, QWEN3_VL, square
from tests.reference import stage1
from tests.reference.pruning import planned_tokens
from tests.reference.strategies import (
    Rule,
    bounded,
    configurable_strides,
    frame_counts,
    grids,
    modes,
    rules,
    scores,
)

NEWLINES: dict[str, dict[str, Any]] = {
    stage1.EVENT: {"closes_events": True},
    stage1.ROW: {"row_newline": True},
    stage1.NOWHERE: {},
}
newlines = st.sampled_from(list(NEWLINES))


@bounded
@given(grids, st.integers(1, 9), modes)
def test_a_frame_has_as_many_features_as_pooling_gives(grid: int, stride: int, mode: str) -> None:
    pooled = stage1.pool_frame(torch.zeros(grid * grid, 2), grid, stride, mode)
    assert square(1, grid, mode).frame_features(stride) == len(pooled)


@bounded
@given(st.data(), frame_counts, rules, grids, configurable_strides, modes, newlines)
def test_counts_are_the_lengths_of_packed_sequences(
    data: st.DataObject,
    frames: int,
    rule: Rule,
    grid: int,
    strides: tuple[int, int, int],
    mode: str,
    where: str,
) -> None:
    video = VideoLayout(frames, grid, grid, pooling=mode, **NEWLINES[where])
    config = METokConfig(
        num_events=rule.num_events,
        key_event_ratio=rule.ratio,
        key_frames_per_event=rule.per_event,
        strides=strides,
    )
    event_of = stage1.event_of_frames(data.draw(scores(frames - 1)), rule.num_events)
    relevance = data.draw(scores(frames))
    natural = stage1.natural_classes(event_of, relevance, rule.ratio, rule.per_event)
    fine, medium, _ = stage1.budget(frames, rule.num_events, rule.ratio, rule.per_event)
    classes = stage1.budgeted_classes(natural, relevance, fine, medium)
    patches = torch.zeros(frames, grid * grid, 1)
    packed = stage1.pack(patches, classes, event_of, torch.zeros(1), grid, strides, mode, where)
    encoded = len(packed.tokens_ND)
    assert video.encoded_tokens(config) == video.tokens(config) == encoded
    alike = [0] * frames
    dense = stage1.pack(patches, alike, alike, torch.zeros(1), grid, (2, 2, 2), mode, where)
    off = METokConfig(enabled=False)
    assert video.dense_tokens() == video.tokens(off) == len(dense.tokens_ND)
    if encoded:
        rule_of_stage_1 = (rule.num_events, rule.ratio, rule.per_event, strides, grid)
        how = (config.keep_ratio, True, mode, where)
        planned = planned_tokens(frames, encoded, *rule_of_stage_1, *how)
        pruning = Pruning.of(config, video.key_share(config))
        assert pruning.counts(encoded).prefill == planned


def test_encoder_rules_keep_features_and_the_last_newline() -> None:
    config = METokConfig(rule="evs", rule_keep=0.25)
    for where, kept in ((stage1.EVENT, 5), (stage1.ROW, 4), (stage1.NOWHERE, 4)):
        assert VideoLayout(4, 4, 4, **NEWLINES[where]).tokens(config) == kept


def test_rectangles_temporal_patches_and_separators() -> None:
    """Counts of a family whose features are merged patches with timestamps between frames."""
    stamps = tuple((1, 2, number) for number in range(8))
    video = VideoLayout(8, 6, 11, unit=2, pooling=AREA, before=stamps, after=((9,),) * 8)
    assert (video.separators, video.dense_stride) == (8 * 4, 2)
    assert video.ends_in_separator
    assert not VideoLayout(8, 6, 11, before=stamps).ends_in_separator
    assert [video.pooled(stride) for stride in (2, 4, 8)] == [(6, 11), (3, 6), (2, 3)]
    assert [video.feature_stride(stride) for stride in (2, 4, 8)] == [1, 2, 4]
    assert video.dense_tokens() == 8 * 66 + 32
    config = METokConfig(num_events=2, key_event_ratio=0.5, key_frames_per_event=2)
    # Two events of four frames: two at 66, two and two at 18, two at 6.
    assert video.encoded_tokens(config) == 2 * 66 + 4 * 18 + 2 * 6 + 32
    # A share of the others: 2 * 66 + 2 * 18 in the key event, 2 * 18 + 2 * 6 in the other.
    assert video.key_share(config) == Fraction(168, 216)


@pytest.mark.parametrize(
    ("fields", "dense"),
    [
        ({}, 32 * 196 + 1),
        ({"mm_newline_position": "one_token"}, 32 * 196 + 1),
        ({"mm_newline_position": "grid"}, 32 * 14 * 15),
        ({"mm_newline_position": "grid", "mm_spatial_pool_mode": AVERAGE}, 32 * 13 * 14),
    ],
)
def test_dense_tokens_of_published_models_with_siglip(fields: dict[str, str], dense: int) -> None:
    vision = SimpleNamespace(image_size=384, patch_size=14)
    assert video_layout(SimpleNamespace(vision_config=vision, **fields), 32).dense_tokens() == dense


def test_llava_onevision_with_metok_s_defaults() -> None:
    assert square(32, 27).encoded_tokens(METokConfig()) == 18 * 196 + 13 * 49 + 1 * 16 + 5


def test_longva_has_144_tokens_a_frame_and_no_newline() -> None:
    vision = SimpleNamespace(image_size=336, patch_size=14)
    fields = {"mm_newline_position": "no_token", "mm_spatial_pool_mode": AVERAGE}
    video = video_layout(SimpleNamespace(vision_config=vision, **fields), 128)
    assert video.dense_tokens() == 128 * 144
    assert video.encoded_tokens(METokConfig()) == 18 * 144 + 71 * 36 + 39 * 9


@pytest.mark.parametrize(
    ("size", "grid_of_2_5", "grid_of_3"),
    [(None, (16, 28), (14, 25)), ((720, 1280), (26, 46), (22, 40)), ((10, 64), (1, 2), (1, 2))],
)
def test_a_video_of_qwen_keeps_its_shape(
    size: tuple[int, int] | None, grid_of_2_5: tuple[int, int], grid_of_3: tuple[int, int]
) -> None:
    """Sides are rounded to 28 and to 32 pixels, which are one feature each."""
    for config, grid in ((QWEN2_5_VL, grid_of_2_5), (QWEN3_VL, grid_of_3)):
        video = video_layout(config, 64, size)
        assert (video.grid, video.unit, video.dense_stride) == (grid, 2, 2)
        # Two sampled frames are one temporal patch.
        assert [video_layout(config, frames, size).frames for frames in (1, 2, 63, 64)] == [
            1, 1, 32, 32
        ]  # fmt: skip


def test_tokens_of_qwen_follow_from_temporal_patches() -> None:
    config = METokConfig(num_events=4, key_event_ratio=0.5, key_frames_per_event=2)
    # 32 patches in four events of eight: two key events of 2 fine and 6 medium patches, two others
    # of 2 medium and 6 coarse ones. 16 x 28 features pool to 8 x 14 and 4 x 7.
    plain = video_layout(QWEN2_5_VL, 64)
    assert (plain.separators, plain.dense_tokens()) == (0, 32 * 448)
    assert plain.encoded_tokens(config) == 4 * 448 + 16 * 112 + 12 * 28
    stamped = video_layout(QWEN3_VL, 64)
    # Patches stand at 0.25, 1.25 ... 31.25 s: ten have one digit, 22 two, before the point.
    assert stamped.separators == 10 * 8 + 22 * 9
    assert stamped.dense_tokens() == 32 * 350 + stamped.separators
    assert stamped.encoded_tokens(config) == 4 * 350 + 16 * 91 + 12 * 28 + stamped.separators


def test_a_timestamp_of_qwen3_has_as_many_tokens_as_characters() -> None:
    """`<12.2 seconds><|vision_start|>` is `<`, `1`, `2`, `.`, `2`, ` seconds`, `>` and a mark."""
    video = video_layout(QWEN3_VL, 300)
    lengths = [len(ids) for ids in video.before]
    assert (lengths[0], lengths[12], lengths[149]) == (7, 8, 9)  # 0.2, 12.2 and 149.2 seconds
    assert {len(ids) for ids in video.after} == {1}


def test_a_layout_without_ids_has_the_same_counts() -> None:
    """It is kept for each of many videos, so equal numbers of separators share one tuple."""
    before = tuple((7, 8, 9)[: 1 + number % 3] for number in range(6))
    video = VideoLayout(6, 4, 5, unit=2, pooling=AREA, before=before, after=((3,),) * 6)
    lean = video.without_ids()
    assert (lean.separators, lean.ends_in_separator) == (video.separators, True)
    assert lean.dense_tokens() == video.dense_tokens()
    assert lean.tokens(METokConfig()) == video.tokens(METokConfig())
    assert list(map(len, lean.before)) == list(map(len, before))
    assert len({id(ids) for ids in (*lean.before, *lean.after)}) == 3
    assert VideoLayout(6, 4, 5).without_ids() == VideoLayout(6, 4, 5)
