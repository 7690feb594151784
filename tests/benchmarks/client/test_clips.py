"""Clips drawn from a seed: the same bytes each time, and what their kind promises inside."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from metok_vllm.benchmarks.client import videos as clips
from metok_vllm.benchmarks.client.videos import CLIP_KINDS, Clip, ClipKind
from metok_vllm.video import MediaLimits, probe

CUTS = Clip("cuts", (3, 1), frames=60, fps=4, width=64, height=48)


def changes(clip: Clip) -> list[float]:
    """How much each frame but the first differs from the one before it, in grey levels."""
    with av.open(io.BytesIO(clips.encode(clip))) as container:
        frames = [f.to_ndarray(format="rgb24").astype(float) for f in container.decode(video=0)]
    return [float(np.abs(b - a).mean()) for a, b in pairwise(frames)]


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_the_same_bytes_for_the_same_seed_and_no_other(kind: ClipKind) -> None:
    clip = replace(CUTS, kind=kind)
    data = clips.encode(clip)
    assert clips.encode(clip) == data
    assert clips.encode(replace(clip, seed=(3, 2))) != data


@pytest.mark.parametrize("kind", CLIP_KINDS)
@pytest.mark.parametrize("frames", [1, 2, 41])
def test_as_long_and_as_large_as_asked_for(kind: ClipKind, frames: int) -> None:
    found = probe(clips.encode(replace(CUTS, kind=kind, frames=frames)), MediaLimits())
    assert (found.num_frames, found.width, found.height) == (frames, 64, 48)
    assert found.duration_s == pytest.approx(frames / 4)
    assert found.codec == "h264"


def test_the_largest_changes_are_the_cuts() -> None:
    cuts = clips.scene_cuts(np.random.default_rng(CUTS.seed), CUTS.frames)
    assert clips.SCENES[0] - 1 <= len(cuts) <= clips.SCENES[1] - 2
    change = changes(CUTS)
    largest = sorted(range(1, CUTS.frames), key=lambda frame: -change[frame - 1])
    assert sorted(largest[: len(cuts)]) == cuts
    inside = [change[frame - 1] for frame in largest[len(cuts) :]]
    assert np.median(inside) > 0.5, "the camera moves inside a scene"


def test_scenes_of_any_length() -> None:
    for seed in range(50):
        for frames in (1, 2, 5, 1024):
            cuts = clips.scene_cuts(np.random.default_rng(seed), frames)
            lengths = np.diff([0, *cuts, frames])
            assert lengths.sum() == frames
            assert lengths.min() >= 1
            if frames == 1024:
                assert len(lengths) in range(*clips.SCENES)
                assert lengths.max() <= 3 * (lengths.min() + 1)


def test_a_static_clip_does_not_change_and_noise_always_does() -> None:
    assert max(changes(replace(CUTS, kind="static"))) < 1
    assert min(changes(replace(CUTS, kind="noise"))) > 30


def test_read_from_disk_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = replace(CUTS, seed=(3, 4, 5))
    first = clips.video_bytes(clip)
    assert first == clips.encode(clip)
    monkeypatch.setattr(clips, "encode", lambda clip: pytest.fail("drawn a second time"))
    assert clips.video_bytes(clip) == first


def test_no_two_clips_share_a_file_name() -> None:
    others = [
        replace(CUTS, kind="noise"),
        replace(CUTS, seed=(31,)),
        replace(CUTS, frames=61),
        replace(CUTS, fps=5),
        replace(CUTS, width=66),
        replace(CUTS, height=50),
    ]
    assert len({clip.name for clip in [CUTS, *others]}) == 7


def test_a_picture() -> None:
    data = clips.jpeg_bytes((1, 2), 64, 48)
    assert clips.jpeg_bytes((1, 2), 64, 48) == data != clips.jpeg_bytes((1, 3), 64, 48)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (64, 48))
