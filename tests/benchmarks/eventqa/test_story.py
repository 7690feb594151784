"""Stories: reproducible, complete, and split by combination."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metok_vllm.benchmarks.eventqa.story import FADE_FRAMES, draw_story
from metok_vllm.benchmarks.eventqa.world import (
    COLOURS,
    SHAPES,
    SPLITS,
    Split,
    combinations,
    split_of,
)
from training.material import story_part

SEEDS = st.integers(0, 2**20)


def test_splits_share_no_combination_and_leave_none_out() -> None:
    train, test = set(combinations("train")), set(combinations("test"))
    assert not train & test
    assert len(train | test) == len(COLOURS) * (len(COLOURS) - 1) * len(SHAPES)
    assert 0.15 < len(test) / len(train | test) < 0.25
    # Both splits have every attribute; only combinations are held out.
    for position in range(3):
        assert {c[position] for c in train} == {c[position] for c in test}


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(8, 256), st.booleans(), st.sampled_from(SPLITS))
def test_events_fill_the_frames(seed: int, frames: int, needle: bool, split: Split) -> None:
    story = draw_story((seed,), frames, split, needle=needle)
    assert story == draw_story((seed,), frames, split, needle=needle)
    ends = [0, *(event.end for event in story.events)]
    assert [event.start for event in story.events] == ends[:-1]
    assert ends[-1] == frames
    assert all(event.end - event.start >= 2 for event in story.events)
    scenes = [event.scene for event in story.events]
    assert len({scene.background for scene in scenes}) == len(scenes)
    assert len({scene.thing for scene in scenes}) == len(scenes)
    for scene in scenes:
        assert split_of(scene.background, scene.colour, scene.shape) == split
        assert len({scene.background, scene.colour, scene.dot}) == 3
    if needle:
        assert story.needle is not None
        short = story.events[story.needle]
        assert 0 < story.needle < len(scenes) - 1
        assert short.end - short.start == 2
        assert not short.soft
        assert not story.events[story.needle + 1].soft
    for event in story.events:
        assert not event.soft or event.end - event.start > FADE_FRAMES


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.data())
def test_a_part_shows_the_scenes_of_the_story(seed: int, data: st.DataObject) -> None:
    story = draw_story((seed,), 64, "train", needle=True)
    frames = data.draw(st.integers(4, 64))
    start = data.draw(st.integers(0, 64 - frames))
    part = story_part(story, start, frames)
    whole = [event.scene for event in story.events for _ in range(event.end - event.start)]
    shown = [event.scene for event in part.events for _ in range(event.end - event.start)]
    assert shown == whole[start : start + frames]
    if part.needle is not None:
        assert part.events[part.needle].scene == story.events[story.needle or 0].scene


def test_events_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="9 events do not fit 64 frames"):
        draw_story((0,), 64, "train", events=9)
    with pytest.raises(ValueError, match="3 events do not fit 4 frames"):
        draw_story((0,), 4, "train", events=3)
    with pytest.raises(ValueError, match="at least 3, got 2"):
        draw_story((0,), 64, "train", events=2, needle=True)


def test_lengths_are_unequal() -> None:
    spread = []
    for seed in range(50):
        lengths = [e.end - e.start for e in draw_story((seed,), 64, "train", events=4).events]
        spread.append(max(lengths) / min(lengths))
    assert np.median(spread) > 2
