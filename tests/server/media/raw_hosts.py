"""Hosts on loopback that send the bytes of a test at its pace."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TLS = b"\x16\x03"
Script = Callable[[socket.socket], None]


@dataclass
class RawHost:
    """`port`, the requests that were read, and connections that the client has closed."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def raw_host(script: Script) -> Iterator[RawHost]:
    """A host that reads the head of each request and then runs `script` on the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    host = RawHost(listener.getsockname()[1])

    def serve(connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65536)):
                head += part
                if head.startswith(TLS):
                    break
            host.requests.append(head)
            try:
                script(connection)
            except OSError:  # the client has left
                host.closed.set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield host
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def sending(*pieces: bytes) -> Script:
    """Sends the pieces and closes."""

    def script(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return script


def sending_for_ever(first: bytes, again: bytes) -> Script:
    """Sends `again` until the client leaves."""

    def script(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(again)

    return script
