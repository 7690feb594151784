"""Messages from a worker are bounded; its files are mapped only where they are sealed."""

from __future__ import annotations

import gc
import os
import socket
import struct
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from metok_vllm.video.channel import (
    MAP_BYTES,
    ChannelClosedError,
    anonymous_file,
    contents,
    receive,
    send,
    write_all,
)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_mapped_file_is_sealed() -> None:
    before = open_files()
    with anonymous_file() as file:
        write_all(file, b"x" * (MAP_BYTES + 1))
        memory = contents(file, MAP_BYTES)
        with pytest.raises(PermissionError):
            os.pwrite(file.fileno(), b"y", 0)
        with pytest.raises(PermissionError):
            os.truncate(file.fileno(), 0)
        memory[0] = ord("z")
        assert os.pread(file.fileno(), 2, 0) == b"xx"
    assert memory[:2] == b"zx"
    assert len(memory) == MAP_BYTES
    assert open_files() == before + 1, "not mapped"
    del memory
    gc.collect()
    assert open_files() == before


@pytest.mark.parametrize("num_bytes", [1, MAP_BYTES])
def test_files_that_cannot_be_sealed_are_copied(num_bytes: int) -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        write_all(file, b"x" * num_bytes)
        memory = contents(file, num_bytes)
        os.truncate(file.fileno(), 0)
    assert memory[:] == b"x" * num_bytes


@pytest.mark.parametrize("num_bytes", [1, MAP_BYTES])
def test_files_that_are_too_short(num_bytes: int) -> None:
    with anonymous_file() as file:
        write_all(file, b"x" * (num_bytes - 1))
        with pytest.raises(ChannelClosedError):
            contents(file, num_bytes)


def test_long_messages_are_read_in_linear_time() -> None:
    """Ten million bytes, in pieces as the system gives them, took seconds to put together."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as threads:
        text = "x" * 10_000_000
        sent = threads.submit(send, theirs, {"text": text})
        started = time.monotonic()
        message, _ = receive(ours, max_bytes=1 << 24)
        sent.result()
    assert message["text"] == text
    assert time.monotonic() - started < 2


def test_a_length_alone_takes_no_memory() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!I", 0xFFFFFFFF))
        tracemalloc.start()
        try:
            with pytest.raises(ChannelClosedError):
                receive(ours)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"{", b"\xff", b"[]", b"1", b"null", b'{"a":' * 9999, b""]
)
def test_invalid_messages_close_the_channel(body: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!I", len(body)) + body)
        with pytest.raises(ChannelClosedError):
            receive(ours)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_only_regular_files_are_taken(kind: str) -> None:
    before = open_files()
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    folder = os.open("/", os.O_RDONLY)
    device = os.open("/dev/zero", os.O_RDONLY)
    fds = {"pipe": reader, "folder": folder, "device": device, "socket": theirs.fileno()}
    with ours, theirs:
        socket.send_fds(theirs, [struct.pack("!I", 2)], [fds[kind]])
        theirs.sendall(b"{}")
        with pytest.raises(ChannelClosedError):
            receive(ours)
    for fd in (reader, writer, folder, device):
        os.close(fd)
    assert open_files() == before
