"""The sample video is what `scenes.json` says."""

from __future__ import annotations

from itertools import pairwise

import av
import numpy as np
import pytest

from metok_vllm.demo import SAMPLE_VIDEO, SCENES


def test_scenes_fill_a_minute_with_unequal_lengths() -> None:
    assert 6 <= len(SCENES) <= 8
    assert SCENES[0].start_s == 0
    assert SCENES[-1].end_s == pytest.approx(60)
    for scene, following in pairwise(SCENES):
        assert scene.end_s == following.start_s
    assert len({round(scene.end_s - scene.start_s, 3) for scene in SCENES}) == len(SCENES)


def test_stream_and_cuts() -> None:
    with av.open(str(SAMPLE_VIDEO)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert container.duration / av.time_base == pytest.approx(60, abs=0.1)
        decoded = [
            (frame.time, frame.reformat(80, 60, "gray").to_ndarray().astype(np.int16))
            for frame in container.decode(video=0)
        ]
    times = np.array([time for time, _ in decoded])
    change = np.array([np.abs(b - a).mean() for (_, a), (_, b) in pairwise(decoded)])
    sharpest = np.sort(np.argsort(-change)[: len(SCENES) - 1])
    assert times[sharpest + 1] == pytest.approx([scene.start_s for scene in SCENES[1:]])
    assert change[sharpest].min() > 3 * np.delete(change, sharpest).max()


def test_index_comes_first_so_that_it_streams() -> None:
    data = SAMPLE_VIDEO.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
