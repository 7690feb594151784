"""Pictures into H.264 in an mp4, the same bytes each time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
# One thread and no B-frames: the same bytes on any number of cores, and quick to write. With
# AVX-512, x264's macroblock tree now and then gives other bytes for the same pictures, on a busy
# machine one time in ten. With SSE4.2 they are those it mostly gave; on other processors, others.
STEADY = {"bf": "0", "threads": "1", "x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE4.2"}


def encode_mp4(
    pictures: Iterable[Picture], fps: int, width: int, height: int, options: Mapping[str, str]
) -> bytes:
    """Pictures uint8 [H, W, C] of even sides, one a frame, with libx264's `options`."""
    with tempfile.TemporaryDirectory(prefix="metok-mp4-") as folder:
        path = Path(folder) / "video.mp4"
        _write(path, pictures, fps, (width, height), {**STEADY, **options})
        return path.read_bytes()


def _write(
    path: Path,
    pictures: Iterable[Picture],
    fps: int,
    size: tuple[int, int],
    options: Mapping[str, str],
) -> None:
    # The index first, so that a browser can start before it has the whole file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=fps, options=dict(options))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number, picture_HWC in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
