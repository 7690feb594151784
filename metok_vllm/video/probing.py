"""Facts about a video before any frame is decoded, and checks against the limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from typing import Any, BinaryIO, NoReturn

import av

from metok_vllm.errors import MediaError, MediaTooLargeError
from metok_vllm.video.frame_index import FrameIndex
from metok_vllm.video.limits import MediaLimits, Transport, flag_of
from metok_vllm.video.mp4_boxes import check_tables, is_fragmented
from metok_vllm.video.packets import Packets, check_packets, scan

# Demuxers that read nothing but the given bytes. Playlists (hls, dash, concat) would open other
# files and addresses for a client. Audio formats are listed for better error messages.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,ivf,gif,mp3,wav,flac,aac"
# Bytes that FFmpeg asks for at once. The packets of 4 GB are read in 1 s; in 7 s by its 32 KiB.
READ_BYTES = 1 << 18


@dataclass(frozen=True)
class VideoProbe:
    """Facts about a video as its packets state them; `read_video` verifies them by decoding."""

    container: str
    codec: str
    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float


@dataclass(frozen=True)
class VideoSource:
    """A probed video for the readers. `file` is seekable and holds the whole video."""

    file: BinaryIO
    probe: VideoProbe
    packets: Packets
    index: FrameIndex
    bits_per_component: int
    limits: MediaLimits
    threads: int
    transport: Transport = Transport.DATA


def probe(data: bytes, limits: MediaLimits) -> VideoProbe:
    """Container, codec, size and length of a video in memory.

    Runs FFmpeg's demuxer in this process without a deadline; use `read_video` for untrusted bytes.
    Raises MediaError for what is not a readable video, MediaTooLargeError over a limit.
    """
    check_size(len(data), limits)
    return inspect(BytesIO(data), limits).probe


def check_size(num_bytes: int, limits: MediaLimits, transport: Transport = Transport.DATA) -> None:
    """Raises MediaError for an empty file, MediaTooLargeError for one over its limit."""
    if num_bytes == 0:
        raise MediaError("the video is empty (0 bytes)", "empty")
    limit, flag = limits.bytes_of(transport)
    if num_bytes > limit:
        raise MediaTooLargeError(
            f"the video has {num_bytes} bytes; this server accepts at most {limit} ({flag})",
            "too_large",
        )


def inspect(
    file: BinaryIO,
    limits: MediaLimits,
    threads: int = 1,
    transport: Transport = Transport.DATA,
) -> VideoSource:
    """Probe and index the video in `file`; raises as `probe` does."""
    check_tables(file, file.seek(0, SEEK_END))
    with open_container(file, limits.max_frame_pixels) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if context is None:
            raise MediaError("the codec of the video is not supported", "decode_failed")
        width, height = context.width, context.height
        if width < 1 or height < 1:
            width, height = _declared_size(file)
        if width * height > limits.max_frame_pixels:
            raise MediaTooLargeError(
                f"the frames have {width} x {height} pixels; "
                f"this server accepts at most {limits.max_frame_pixels} pixels a frame "
                f"({flag_of('max_frame_pixels')})",
                "too_many_pixels",
            )
        if context.width < 1 or context.height < 1:
            raise MediaError("the frame size of the video cannot be read", "decode_failed")
        check_packets(len(stream.index_entries))
        packets = scan(container, stream, limits.bytes_of(transport)[0])
        index = FrameIndex.of(packets)
        if index.total == 0:
            raise MediaError("the video has no frames", "zero_frames")
        _check_complete(stream, file)
        check_duration(index, limits, transport)
        components = context.format.components if context.format is not None else ()
        return VideoSource(
            file=file,
            probe=VideoProbe(
                container=_container_name(container.format.name),
                codec=context.codec.canonical_name,
                width=width,
                height=height,
                num_frames=index.total,
                fps=index.fps,
                duration_s=index.duration_s,
            ),
            packets=packets,
            index=index,
            bits_per_component=max((part.bits for part in components), default=0),
            limits=limits,
            threads=threads,
            transport=transport,
        )


def _check_complete(stream: Any, file: BinaryIO) -> None:
    """Raise MediaError(truncated) where the container's index lists bytes beyond the file's end.

    A fragmented mp4 is a stream that may end anywhere, so the part that is present is read.
    """
    present = file.seek(0, SEEK_END)
    listed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if listed > present and not is_fragmented(file, present):
        raise MediaError(
            f"the video is cut off: {present} of at least {listed} bytes are there", "truncated"
        )


def check_duration(index: FrameIndex, limits: MediaLimits, transport: Transport) -> None:
    """Raises MediaTooLargeError for a video that lasts too long."""
    limit, flag = limits.duration_of(transport)
    if index.duration_s > limit:
        raise MediaTooLargeError(
            f"the video lasts {index.duration_s:.0f} s; "
            f"this server accepts at most {limit:g} s ({flag})",
            "too_long",
        )


@contextmanager
def open_container(file: BinaryIO, max_pixels: int, **options: str) -> Iterator[Any]:
    """An open PyAV container on `file`, from its start. Raises MediaError(reason not_video)."""
    file.seek(0)
    options |= {"format_whitelist": CONTAINERS, "max_pixels": decoder_pixels(max_pixels)}
    try:
        container = av.open(
            file,
            mode="r",
            options=options,
            metadata_errors="ignore",
            buffer_size=READ_BYTES,
            io_open=_refuse_to_open,
        )
    except MemoryError:
        raise
    except (av.FFmpegError, OSError, ValueError):
        file.seek(4)
        if file.read(4) == b"ftyp":
            message = "the mp4 file is cut off or damaged: its index (moov) cannot be read"
        else:
            message = "the file is not a video in a supported container"
        raise MediaError(message, "not_video") from None
    with container:
        yield container


def decoder_pixels(max_pixels: int) -> str:
    """FFmpeg's own `max_pixels`, which stops frames that grow inside a stream.

    It counts padding too, so it is above the limit for the frames themselves.
    """
    return str(2 * max_pixels + (1 << 20))


def video_stream(container: Any) -> Any:
    """The first video stream that is not a cover picture, or MediaError(no_video_stream)."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise MediaError("the file has no video stream", "no_video_stream")


def _declared_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height in the container's header; zeros where it states none.

    FFmpeg drops them when the decoder that it probes refuses frames of that size.
    """
    with open_container(file, 0, codec_whitelist="none") as container:
        context = video_stream(container).codec_context
        return context.width, context.height


def _refuse_to_open(url: str, *_: object) -> NoReturn:
    raise PermissionError("a video may not refer to other files")


def _container_name(names: str) -> str:
    """One of FFmpeg's aliases for a format, such as mp4 in "mov,mp4,m4a,3gp,3g2,mj2"."""
    aliases = names.split(",")
    return "mp4" if "mp4" in aliases else aliases[0]
