"""Pictures show their story at every size and after video compression."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metok_vllm.benchmarks.eventqa.clips import FPS, clip_bytes, write_folder
from metok_vllm.benchmarks.eventqa.drawing import SHAPE_OF, backdrop, draw, pictures, stage
from metok_vllm.benchmarks.eventqa.story import draw_story
from metok_vllm.benchmarks.eventqa.world import COLOURS, SHAPES, Scene
from metok_vllm.video import MediaLimits
from metok_vllm.video.reading import read_video


def nearest(colour: np.ndarray) -> str:
    distance = {n: np.abs(colour.astype(float) - rgb).sum() for n, rgb in COLOURS.items()}
    return min(distance, key=lambda name: distance[name])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapes_and_dot_are_at_their_places(shape: str, count: int) -> None:
    rng = np.random.default_rng(count)
    staged = stage(Scene("black", "red", shape, count, "white", "plain"), rng)
    picture = draw(staged, backdrop(staged, 112), 0)
    assert len(staged.shapes) == count
    quarters = {(s.x > 0.5, s.y > 0.5) for s in staged.shapes}
    assert len(quarters) == count
    red = np.array([[nearest(p) == "red" for p in row] for row in picture[::4, ::4]])
    halves = (slice(0, 14), slice(14, 28))
    found = {
        (right, low)
        for right in (0, 1)
        for low in (0, 1)
        if red[halves[low], halves[right]].sum() > 6
    }
    assert found == quarters
    assert nearest(picture[int(staged.dot.y * 112), int(staged.dot.x * 112)]) == "white"


def test_shapes_differ() -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41), indexing="ij")
    masks = [SHAPE_OF[name](x.astype(np.float32), y.astype(np.float32)) < 0 for name in SHAPES]
    for index, mask in enumerate(masks):
        assert 0.1 < mask.mean() < 0.9
        for other in masks[index + 1 :]:
            assert (mask != other).mean() > 0.05


def test_a_story_looks_alike_at_every_size() -> None:
    story = draw_story((5,), 8, "train")
    small, large = pictures(story, 56), pictures(story, 224)
    shrunk = np.stack(
        [np.asarray(Image.fromarray(p).resize((56, 56), Image.Resampling.BOX)) for p in large]
    )
    assert np.abs(shrunk.astype(float) - small).mean() < 8
    assert (pictures(story, 56) == small).all()


def test_soft_cuts_fade() -> None:
    for seed in range(50):
        story = draw_story((seed,), 64, "train")
        soft = [event for event in story.events if event.soft]
        if soft:
            break
    mean = pictures(story, 32).astype(float).mean((1, 2))
    start = soft[0].start
    before, after = mean[start - 1], mean[start + 3]
    travelled = np.abs(mean[start - 1 : start + 4] - before).sum(1) / np.abs(after - before).sum()
    assert (np.diff(travelled) > 0.1).all()


def test_a_folder_can_be_read_back(tmp_path: Path) -> None:
    entries = write_folder(tmp_path, 2, 16, "test", 9)
    listed = json.loads((tmp_path / "questions.json").read_text())
    assert [entry["question"] for entry in listed] == [entry.question for entry in entries]
    assert {entry["kind"] for entry in listed} >= {"scene", "needle", "list"}
    story = draw_story((9, 0), 16, "test", needle=True)
    drawn = pictures(story, 224)
    data = (tmp_path / listed[0]["video"]).read_bytes()
    assert data == clip_bytes(story)
    video = read_video(data, num_frames=16, limits=MediaLimits())
    assert video.frames_THWC.shape == drawn.shape
    assert np.abs(video.frames_THWC.astype(float) - drawn).mean() < 6
    assert video.duration_s == pytest.approx(16 / FPS)
