"""Clips drawn from a seed: reproducible bytes, and the changes that their kind promises."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest

from metok_vllm.benchmarks.client import videos
from metok_vllm.benchmarks.client.videos import CLIP_KINDS, Clip, ClipKind
from metok_vllm.video import MediaLimits, probe

CUTS = Clip("cuts", (3, 1), frames=60, fps=4, width=64, height=48)


def changes(clip: Clip) -> list[float]:
    """The mean difference of each frame from the one before it, in grey levels."""
    with av.open(io.BytesIO(videos.encode(clip))) as container:
        frames = [f.to_ndarray(format="rgb24").astype(float) for f in container.decode(video=0)]
    return [float(np.abs(b - a).mean()) for a, b in pairwise(frames)]


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_bytes_depend_on_the_seed_alone(kind: ClipKind) -> None:
    clip = replace(CUTS, kind=kind)
    data = videos.encode(clip)
    assert videos.encode(clip) == data
    assert videos.encode(replace(clip, seed=(3, 2))) != data


@pytest.mark.parametrize("kind", CLIP_KINDS)
@pytest.mark.parametrize("frames", [1, 2, 41])
def test_length_and_size(kind: ClipKind, frames: int) -> None:
    found = probe(videos.encode(replace(CUTS, kind=kind, frames=frames)), MediaLimits())
    assert (found.num_frames, found.width, found.height) == (frames, 64, 48)
    assert found.duration_s == pytest.approx(frames / 4)
    assert found.codec == "h264"


def test_the_largest_changes_are_the_cuts() -> None:
    cuts = videos.scene_cuts(np.random.default_rng(CUTS.seed), CUTS.frames)
    assert videos.SCENES[0] - 1 <= len(cuts) <= videos.SCENES[1] - 2
    change = changes(CUTS)
    largest = sorted(range(1, CUTS.frames), key=lambda frame: -change[frame - 1])
    assert sorted(largest[: len(cuts)]) == cuts
    inside = [change[frame - 1] for frame in largest[len(cuts) :]]
    assert np.median(inside) > 0.5, "the camera moves inside a scene"


def test_scenes_of_any_length() -> None:
    for seed in range(50):
        for frames in (1, 2, 5, 1024):
            cuts = videos.scene_cuts(np.random.default_rng(seed), frames)
            lengths = np.diff([0, *cuts, frames])
            assert lengths.sum() == frames
            assert lengths.min() >= 1
            if frames == 1024:
                assert len(lengths) in range(*videos.SCENES)
                assert lengths.max() <= 3 * (lengths.min() + 1)


def test_a_static_clip_does_not_change_and_noise_always_does() -> None:
    assert max(changes(replace(CUTS, kind="static"))) < 1
    assert min(changes(replace(CUTS, kind="noise"))) > 30
