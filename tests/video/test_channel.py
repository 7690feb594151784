"""Files that come from a worker: read without a copy where nobody can change them any more."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest

from metok_vllm.video.channel import (
    MAP_BYTES,
    ChannelClosedError,
    anonymous_file,
    contents,
    write_all,
)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_mapped_file_is_out_of_its_writers_hands() -> None:
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
