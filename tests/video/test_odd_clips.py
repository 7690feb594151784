"""Frame i of a file whose packets are not its frames is frame i of a plain full decode."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest

from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, read_video
from tests.video import clips, fields, odd_clips
from tests.video.odd_clips import GOP, MPEG2, OPEN_GOP, repacked

FPS = 25
HEVC = {"x265-params": "log-level=none:keyint=12:scenecut=0:open-gop=1"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=20", "bf": "0"}
SMALL = (64, 48)


def h264(container: str = "mp4", options: dict[str, str] = GOP) -> bytes:
    return clips.encode(container=container, size=SMALL, options=options)


def hevc(container: str) -> bytes:
    return clips.encode("libx265", container, size=SMALL, options=HEVC)


def mpeg2(container: str) -> bytes:
    return clips.encode("mpeg2video", container, size=SMALL, options=MPEG2)


def vp8() -> bytes:
    return clips.encode("libvpx", "webm", size=SMALL, options={"g": "20", "cpu-used": "8"})


def vp9() -> bytes:
    options = {"g": "20", "cpu-used": "8", "lag-in-frames": "20", "b": "200000"}
    return clips.encode("libvpx-vp9", "webm", size=SMALL, options=options)


# What the packets do, and a clip of it.
ODD: dict[str, Callable[[], bytes]] = {
    "one keyframe, TS": lambda: h264("mpegts", {"bf": "3", "sc_threshold": "0"}),
    "MPEG-2, TS": lambda: mpeg2("mpegts"),
    "MPEG-2, program stream": lambda: mpeg2("mpeg"),
    "program stream cut at the start": lambda: mpeg2("mpeg")[3 * 2048 :],
    "open GOP, TS": lambda: h264("mpegts", OPEN_GOP),
    "HEVC with open GOP, TS": lambda: hevc("mpegts"),
    "starts in a group": lambda: repacked(h264("mpegts"), "mpegts", odd_clips.without_first),
    "starts in an open group": lambda: h264("mpegts", OPEN_GOP)[30 * 188 :],
    "starts at an open group": lambda: repacked(
        h264("mpegts", OPEN_GOP), "mpegts", odd_clips.from_second_key
    ),
    "starts at an open group, mkv": lambda: repacked(
        h264("mp4", OPEN_GOP), "matroska", odd_clips.from_second_key
    ),
    "HEVC starts at an open group": lambda: repacked(
        hevc("mpegts"), "mpegts", odd_clips.from_second_key
    ),
    "MPEG-2 starts at an open group": lambda: repacked(
        mpeg2("mpegts"), "mpegts", odd_clips.from_second_key
    ),
    "time wraps": lambda: repacked(h264("mpegts"), "mpegts", odd_clips.around_the_wrap),
    "starts over": lambda: h264("mpegts") * 2,
    "starts over inside groups": lambda: h264("mpegts")[20 * 188 :] + h264("mpegts")[30 * 188 :],
    "two frames in a PES": lambda: repacked(h264("mpegts"), "mpegts", odd_clips.two_in_one),
    "fields, TS": lambda: fields.clip("mpegts", apart=False),
    "fields in packets of their own, TS": lambda: fields.clip("mpegts", apart=True),
    "fields in samples of their own, mp4": lambda: fields.clip("mp4", apart=True),
    "both fields in a sample, mp4": lambda: fields.clip("mp4", apart=False),
    "no presentation times, AVI": lambda: h264("avi"),
    "no presentation times, ASF": lambda: h264("asf", OPEN_GOP),
    "packed B-frames, AVI": odd_clips.packed_b_frames,
    "hidden VP8 frames": lambda: repacked(vp8(), "webm", odd_clips.with_hidden_vp8),
    "hidden VP9 frames": lambda: odd_clips.hidden_apart(vp9()),
    "repeated time": lambda: repacked(vp8(), "webm", odd_clips.with_repeated_time),
    "intra refresh": lambda: h264("mp4", REFRESH),
    "all marked as keyframes": lambda: repacked(hevc("mp4"), "mp4", odd_clips.all_keys),
    "all marked as keyframes, VP9": lambda: repacked(vp9(), "webm", odd_clips.all_keys),
    "two video streams": odd_clips.two_streams,
    "starts late by an edit": lambda: odd_clips.with_empty_edit(h264(), 2),
    "edit inside an open group": lambda: clips.cut_start(h264("mp4", OPEN_GOP), 1),
    "negative times, mkv": lambda: repacked(h264(), "matroska", odd_clips.earlier),
    "gif": lambda: clips.encode("gif", "gif", size=SMALL, pixels="rgb8", num_frames=20),
}
# The decoder's own times are missing or go back in these: one frame each 1 / 25 s is right.
NO_TIMES = (
    "starts over",
    "starts over inside groups",
    "two frames in a PES",
    "no presentation times, AVI",
    "no presentation times, ASF",
    "packed B-frames, AVI",
)


@pytest.mark.parametrize("name", ODD)
def test_frames_are_those_of_a_full_decode(name: str) -> None:
    data = ODD[name]()
    every_THWC, times = full_decode(data)
    tolerance_s = 1e-3
    if name in NO_TIMES:
        times = [number / FPS for number in range(len(every_THWC))]
        tolerance_s = 0.05  # a frame may be lost where two recordings meet
    for num_frames in (1, 2, 7, 128):
        video = read_video(data, num_frames, limits=MediaLimits(backend="pyav"))
        assert video.total_frames == len(every_THWC)
        assert len(video.indices) == min(num_frames, len(every_THWC))
        np.testing.assert_array_equal(video.frames_THWC, every_THWC[video.indices])
        seconds = [times[index] - times[0] for index in video.indices]
        assert video.timestamps_s == pytest.approx(seconds, abs=tolerance_s)
        step = (times[-1] - times[0]) / (len(times) - 1)
        assert video.duration_s == pytest.approx(step * len(times), abs=0.05)


@pytest.mark.parametrize("name", ["fields in samples of their own, mp4", "repeated time"])
def test_decord_refuses_what_it_would_miscount(name: str) -> None:
    with pytest.raises(MediaError, match="decord does not read"):
        read_video(ODD[name](), 2, limits=MediaLimits(backend="decord"))


@pytest.mark.parametrize("place", [0.35, 0.5, 0.71, 0.93])
@pytest.mark.parametrize("container", ["fragmented mp4", "flv", "mpegts", "matroska"])
def test_a_file_that_breaks_off_inside_a_frame(container: str, place: float) -> None:
    """As many frames as requested of the part that is present."""
    if container == "fragmented mp4":
        data = repacked(h264(), "mp4", list, movflags="frag_keyframe+empty_moov+default_base_moof")
    else:
        data = h264(container)
    data = data[: int(len(data) * place)]
    every_THWC, _ = full_decode(data)
    video = read_video(data, 8)
    assert video.total_frames == len(every_THWC)
    assert len(video.indices) == 8
    # What a decoder puts in place of the missing part of the last one is its own business.
    np.testing.assert_array_equal(video.frames_THWC[:-1], every_THWC[video.indices[:-1]])


def full_decode(data: bytes) -> tuple[clips.Frames, list[float]]:
    """Every frame of the first video stream and its time; goes on behind damage."""
    frames, times = [], []
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        for packet in [*(packet for packet in container.demux(stream) if packet.size), None]:
            try:
                shown = context.decode(packet)
            except av.InvalidDataError:
                continue
            for frame in shown:
                frames.append(frame.to_ndarray(format="rgb24"))
                times.append(frame.pts * float(stream.time_base) if frame.pts is not None else 0.0)
    return np.stack(frames), times
