"""Videos whose packets are not their frames, or lie about them, as bytes; every frame differs."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import av
from av.bitstream import BitStreamFilterContext

from tests.video import clips

GOP = {"g": "12", "bf": "3", "sc_threshold": "0"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=12:scenecut=0"}
MPEG2 = {"g": "12", "bf": "2", "sc_threshold": "1000000000"}


def repacked(
    data: bytes, container: str, change: Callable[[list[Any]], Iterable[Any]], **options: str
) -> bytes:
    """The packets of the first video stream in another container, after `change`."""
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=container, options=options) as output,
    ):
        video = source.streams.video[0]
        stream = output.add_stream_from_template(video)
        for packet in change([packet for packet in source.demux(video) if packet.size]):
            packet.stream = stream
            output.mux(packet)
    return file.getvalue()


def packet_of(data: bytes, like: Any) -> Any:
    """A packet of other bytes with the times and marks of another."""
    packet = av.Packet(data)
    packet.pts, packet.dts, packet.time_base = like.pts, like.dts, like.time_base
    packet.is_keyframe = like.is_keyframe
    return packet


def all_keys(packets: list[Any]) -> list[Any]:
    """Every packet marked as a keyframe."""
    for packet in packets:
        packet.is_keyframe = True
    return packets


def without_first(packets: list[Any]) -> list[Any]:
    """Packets from the middle of a group on."""
    return packets[5:]


def from_second_key(packets: list[Any]) -> list[Any]:
    """Packets from the second keyframe on, with the frames that lean on the first group."""
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    return packets[keys[1] :]


def _shifted(packets: list[Any], seconds: float) -> list[Any]:
    for packet in packets:
        packet.pts += round(seconds / packet.time_base)
        packet.dts += round(seconds / packet.time_base)
    return packets


def around_the_wrap(packets: list[Any]) -> list[Any]:
    """Times that pass the 33 bits of MPEG-TS in the middle; the muxer adds 1.4 s."""
    return _shifted(packets, 2**33 / 90000 - 1.2 - 1.4)


def earlier(packets: list[Any]) -> list[Any]:
    """Times that begin below zero."""
    return _shifted(packets, -0.5)


def with_repeated_time(packets: list[Any]) -> list[Any]:
    """The twelfth frame at the time of the eleventh."""
    packets[11].pts = packets[11].dts = packets[10].pts
    return packets


def with_hidden_vp8(packets: list[Any]) -> Iterable[Any]:
    """Before every eighth packet a copy that is decoded and not shown, as encoders do (altref)."""
    for number, packet in enumerate(packets):
        if number % 8 == 7:
            data = bytes(packet)
            hidden = packet_of(bytes([data[0] & ~0x10]) + data[1:], packet)
            hidden.pts = hidden.dts = packet.pts - 1
            yield hidden
        yield packet


def two_in_one(packets: list[Any]) -> Iterable[Any]:
    """Every second packet appended to the one before it: a PES of two frames with one time."""
    for first, second in zip(packets[::2], packets[1::2], strict=True):
        yield packet_of(bytes(first) + bytes(second), first)


def hidden_apart(data: bytes) -> bytes:
    """VP9 in IVF whose hidden frames (altref) have packets of their own."""

    def split(packets: list[Any]) -> Iterable[Any]:
        parts = BitStreamFilterContext("vp9_superframe_split", in_stream=packets[0].stream)
        for packet in packets:
            yield from parts.filter(packet)

    return repacked(data, "ivf", split)


def packed_b_frames() -> bytes:
    """MPEG-4 in AVI as DivX 5 wrote it: P and B in one chunk, then one that is "not coded"."""
    data = clips.encode("mpeg4", "avi", num_frames=41, options={"g": "20", "bf": "1"})
    with av.open(io.BytesIO(data)) as source:
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
    # VOP start, P, no whole second, marker, 5 bits of time (25 a second), marker, not coded.
    not_coded = bytes.fromhex("000001b6") + int("01010000010", 2).to_bytes(2)
    chunks: list[bytes] = []
    waiting = b""
    for data_of_packet in packets:
        start = data_of_packet.index(b"\x00\x00\x01\xb6")
        if data_of_packet[start + 4] >> 6 == 2 and waiting:  # a B-VOP
            chunks += [waiting + data_of_packet, not_coded]
            waiting = b""
            continue
        if waiting:
            chunks.append(waiting)
        waiting = data_of_packet
    chunks.append(waiting)
    head = chunks[0].index(b"\x00\x00\x01\xb6")
    user_data = b"\x00\x00\x01\xb2DivX503b1393p"
    chunks[0] = chunks[0][:head] + user_data + chunks[0][head:]
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format="avi") as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, chunk in enumerate(chunks):
            packet = av.Packet(chunk)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.dts = packet.pts = number
            packet.is_keyframe = number == 0
            output.mux(packet)
    return file.getvalue()


def two_streams() -> bytes:
    """An mp4 of two video streams of other sizes and rates."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        streams = []
        for size, rate in (((160, 96), 25), ((96, 64), 10)):
            stream = output.add_stream("libx264", rate=rate, options={"g": "12"})
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for number in range(30):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(
                    clips.picture(number, stream.width, stream.height), format="rgb24"
                )
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())
    return file.getvalue()


def with_empty_edit(data: bytes, seconds: int) -> bytes:
    """The same mp4 with an edit list that waits some seconds before its first frame."""
    start = data.index(b"elst") - 4
    size, edits = struct.unpack(">I", data[start : start + 4])[0], data[start + 12 : start + 16]
    assert edits == b"\0\0\0\1"
    mvhd = data.index(b"mvhd")
    (timescale,) = struct.unpack(">I", data[mvhd + 16 : mvhd + 20])
    entry = struct.pack(">IiI", seconds * timescale, -1, 1 << 16)
    data = data[: start + 12] + b"\0\0\0\2" + entry + data[start + 16 :]
    for box in (b"moov", b"trak", b"edts", b"elst"):
        place = data.index(box) - 4
        (size,) = struct.unpack(">I", data[place : place + 4])
        data = data[:place] + struct.pack(">I", size + 12) + data[place + 4 :]
    return data
