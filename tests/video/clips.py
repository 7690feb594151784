"""Small synthetic videos, good and bad, as bytes; all frames of a clip differ."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def picture(number: int, width: int, height: int) -> Frames:
    """Frame `number` [H, W, 3]: moving ramps and blocks, so that wrong frames show."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frame_HWC = np.stack(
        [x * 3 + number * 7, y * 5 + number * 3, (x + y) * 2 + number * 11], axis=-1
    ).astype(np.uint8)
    frame_HWC[(y // 8 + x // 8 + number) % 5 == 0] = (255, number * 37 % 256, 0)
    return frame_HWC


def encode(
    codec: str = "libx264",
    container: str = "mp4",
    *,
    size: tuple[int, int] = (160, 96),
    num_frames: int = 60,
    times_ms: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    colorspace: int | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video of `num_frames` pictures at 25 fps, or one picture at each of `times_ms`."""
    base = Fraction(1, 25) if times_ms is None else Fraction(1, 1000)
    times = range(num_frames) if times_ms is None else times_ms
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.codec_context.time_base = base
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=colorspace)
            frame.pts, frame.time_base = time, base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def audio_only(cover: bool = False) -> bytes:
    """An m4a file of a tenth of a second of silence, with a cover picture or without."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000, layout="mono")
        picture_stream = None
        if cover:
            picture_stream = output.add_stream("mjpeg", rate=1)
            picture_stream.width, picture_stream.height = 32, 32
            picture_stream.pix_fmt = "yuvj420p"
            picture_stream.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(picture(0, 32, 32), format="rgb24")
            output.mux(picture_stream.encode(frame.reformat(format="yuvj420p")))
            output.mux(picture_stream.encode())
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.rate = 8000
        output.mux(stream.encode(sound))
        output.mux(stream.encode())
    return file.getvalue()


def zero_frames() -> bytes:
    """An mp4 whose video track holds no sample: all its tables are empty."""
    data = bytearray(encode("mpeg4", size=(64, 48), num_frames=2))
    for table in (b"stts", b"stsc", b"stco", b"stss"):
        start = data.index(table) + 8
        data[start : start + 4] = bytes(4)
    start = data.index(b"stsz") + 12
    data[start : start + 4] = bytes(4)
    return bytes(data)


def huge_frames(side: int) -> bytes:
    """MJPEG in mp4 whose headers, not whose data, say side x side pixels."""
    data = bytearray(encode("mjpeg", size=(64, 64), num_frames=3, pixels="yuvj420p"))
    entry = data.index(b"mp4v", data.index(b"stsd"))
    data[entry + 28 : entry + 32] = struct.pack(">HH", side, side)
    start = data.find(b"\xff\xc0\x00\x11")
    while start >= 0:
        data[start + 5 : start + 9] = struct.pack(">HH", side, side)
        start = data.find(b"\xff\xc0\x00\x11", start + 9)
    return bytes(data)


def one_big_frame(side: int) -> bytes:
    """One MJPEG frame of side x side pixels, quick to make."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        planes = np.tile(np.arange(side, dtype=np.uint8), (side * 3 // 2, 1))
        output.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuvj420p")))
        output.mux(stream.encode())
    return file.getvalue()


def rotated(data: bytes, degrees: int) -> bytes:
    """The same mp4, to be shown turned clockwise by 90, 180 or 270 degrees."""
    one = 1 << 16
    a, b = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    start = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    return data[:start] + matrix + data[start + 36 :]


def cut_start(data: bytes, seconds: int) -> bytes:
    """The same mp4 with an edit list that leaves out its first seconds."""
    start = data.index(b"elst") + 16
    mdhd = data.index(b"mdhd")
    (timescale,) = struct.unpack(">I", data[mdhd + 16 : mdhd + 20])
    (media_time,) = struct.unpack(">i", data[start : start + 4])
    return data[:start] + struct.pack(">i", media_time + seconds * timescale) + data[start + 4 :]


def repeated(data: bytes, times: int) -> bytes:
    """The pictures of an mp4 over and over: long to decode, quick to make."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = None
        shift = 0
        for _ in range(times):
            with av.open(io.BytesIO(data)) as source:
                video = source.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                end = 0
                for packet in source.demux(video):
                    if packet.dts is None:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    output.mux(packet)
                shift += end
    return file.getvalue()


@cache
def heavy() -> bytes:
    """9000 frames in GOPs of 120: seconds to decode; a sample of 128 needs nearly all of them."""
    options = {"bf": "0", "preset": "ultrafast", "crf": "40", "g": "120", "sc_threshold": "0"}
    return repeated(encode(size=(640, 368), num_frames=120, options=options), 75)


def decode_all(data: bytes) -> tuple[Frames, list[float]]:
    """Every frame [T, H, W, 3] and its time, by a plain full decode."""
    frames, times = [], []
    with av.open(io.BytesIO(data)) as container:
        for frame in container.decode(video=0):
            turns = frame.rotation // 90
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
            times.append(frame.time)
    return np.stack(frames), times
