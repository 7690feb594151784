"""Messages between the server and its decode workers: JSON, and an anonymous file with each.

Bulk data (the video, the frames) travels in files without a name, so that no crash of either side
leaves a file behind. A message is a length of 4 bytes, then JSON; its file descriptor is sent with
the length.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import stat
import struct
import tempfile
import time
from typing import Any, BinaryIO

_LENGTH = struct.Struct("!I")
# Files of this size or more are mapped. A mapping keeps its file descriptor while it exists.
MAP_BYTES = 8 << 20
# Bytes of one message; replies of workers have smaller bounds.
MAX_MESSAGE = 1 << 20


class ChannelClosedError(Exception):
    """The other side has exited, or does not follow the protocol."""


def anonymous_file() -> BinaryIO:
    """An unbuffered file without a name, in memory where the system supports that."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("metok-video", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        return os.fdopen(file, "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to an unbuffered file, which may take fewer bytes than offered."""
    view = memoryview(data).cast("B")
    while len(view) > 0:
        view = view[file.write(view) :]


def contents(file: BinaryIO, num_bytes: int) -> mmap.mmap:
    """The first `num_bytes` of an unbuffered file, as writable memory of this process alone.

    Mapped without a copy where that is safe. Raises ChannelClosedError if the file is shorter.
    """
    if num_bytes >= MAP_BYTES and _seal(file):
        if os.fstat(file.fileno()).st_size < num_bytes:
            raise ChannelClosedError
        return mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_COPY)
    memory = mmap.mmap(-1, num_bytes)
    with memoryview(memory) as view:
        _read_into(file, view)
    return memory


def _seal(file: BinaryIO) -> bool:
    """Make a memory file immutable for all processes; False for other files.

    A writer could otherwise change mapped frames, or truncate the file, which kills the reader.
    """
    if not hasattr(fcntl, "F_ADD_SEALS"):
        return False
    try:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)
    except OSError:
        return False
    return True


def _read_into(file: BinaryIO, view: memoryview) -> None:
    file.seek(0)
    while len(view) > 0:
        count = os.readv(file.fileno(), [view])
        if not count:
            raise ChannelClosedError
        view = view[count:]


def send(sock: socket.socket, message: dict[str, Any], file: BinaryIO | None = None) -> None:
    """Send one message with `file`. Raises ChannelClosedError."""
    body = json.dumps(message).encode()
    fds = [] if file is None else [file.fileno()]
    try:
        socket.send_fds(sock, [_LENGTH.pack(len(body))], fds)
        sock.sendall(body)
    except TimeoutError:
        raise
    except OSError:
        raise ChannelClosedError from None


def receive(
    sock: socket.socket, deadline: float | None = None, max_bytes: int = MAX_MESSAGE
) -> tuple[dict[str, Any], BinaryIO | None]:
    """Wait for one message of at most `max_bytes` and its file, until `deadline` (monotonic).

    Raises TimeoutError, or ChannelClosedError where the other side has exited or breaks the
    protocol.
    """
    file: BinaryIO | None = None
    try:
        _set_timeout(sock, deadline)
        head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, 1)
        if fds:
            file = _opened(fds[0])
        if len(head) != _LENGTH.size:
            raise ChannelClosedError
        (length,) = _LENGTH.unpack(head)
        if length > max_bytes:
            raise ChannelClosedError
        return _parsed(_body(sock, length, deadline)), file
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            raise ChannelClosedError from None
        raise


def _opened(fd: int) -> BinaryIO:
    """The regular file of a received descriptor, which this side closes."""
    try:
        # Reads from a pipe or a device could block for ever.
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ChannelClosedError
        return os.fdopen(fd, "r+b", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def _body(sock: socket.socket, length: int, deadline: float | None) -> bytearray:
    body = bytearray(length)
    with memoryview(body) as view:
        done = 0
        while done < length:
            _set_timeout(sock, deadline)
            count = sock.recv_into(view[done:])
            if not count:
                raise ChannelClosedError
            done += count
    return body


def _parsed(body: bytearray) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ChannelClosedError from None
    if not isinstance(message, dict):
        raise ChannelClosedError
    return message


def _set_timeout(sock: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)
