"""An open video file: it is never read into the server's memory, only the decoder reads it."""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO

from metok_vllm.video.channel import anonymous_file, write_all
from metok_vllm.video.limits import Transport

# A file that changes within the resolution of its times keeps its identity. Like git, files that
# were changed so recently count as unknown.
UNSETTLED_NS = 2_000_000_000
CHUNK_BYTES = 1 << 20


class VideoFile:
    """A seekable file of `num_bytes`, and how it came here.

    `close`, the end of a `with` block or garbage collection closes the file and calls `release`.
    """

    def __init__(
        self, file: BinaryIO, transport: Transport, release: Callable[[], None] = lambda: None
    ) -> None:
        self.file = file
        self.transport = transport
        self.num_bytes = os.fstat(file.fileno()).st_size
        self._finalizer = weakref.finalize(self, _close, file, release)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        self._finalizer()

    def read(self) -> bytes:
        """All bytes. For files that are known to be small."""
        self.file.seek(0)
        return bytes(self.file.read(self.num_bytes))

    def digest(self) -> bytes | None:
        """An identity of the content; None where it is unknown.

        A local file may be too long to be read for it, so its identity is that of the file system.
        """
        if self.transport is not Transport.LOCAL:
            self.file.seek(0)
            content = hashlib.sha256()
            while chunk := self.file.read(CHUNK_BYTES):
                content.update(chunk)
            return content.digest()
        stat = os.fstat(self.file.fileno())
        if time.time_ns() - max(stat.st_ctime_ns, stat.st_mtime_ns) < UNSETTLED_NS:
            return None
        facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        return hashlib.sha256(repr(facts).encode()).digest()


def in_memory(data: bytes, transport: Transport) -> VideoFile:
    """A file without a name that holds `data`."""
    file = anonymous_file()
    try:
        write_all(file, data)
        return VideoFile(file, transport)
    except BaseException:
        file.close()
        raise


def _close(file: BinaryIO, release: Callable[[], None]) -> None:
    file.close()
    release()
