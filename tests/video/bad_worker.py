"""A compromised decode worker: `python -m tests.video.bad_worker`.

It answers every request with the invalid reply that the file names.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any, BinaryIO

from metok_vllm.video.channel import anonymous_file, receive, send

SHAPE = [2, 4, 6, 3]
VALID: dict[str, Any] = {
    "shape": SHAPE,
    "indices": [0, 3],
    "timestamps_s": [0.0, 0.5],
    "fps": 6.0,
    "duration_s": 1.0,
    "total_frames": 6,
    "backend": "pyav",
    "downscale": 1,
    "decode_s": 0.1,
}
DECODED: dict[str, dict[str, Any]] = {
    "other channels": {"shape": [2, 4, 6, 4]},
    "more frames than requested": {
        "shape": [9, 1, 1, 3],
        "indices": list(range(9)),
        "timestamps_s": [0.0] * 9,
    },
    "more than was written": {"shape": [2, 40, 60, 3]},
    "less than was written": {"shape": [2, 1, 1, 3]},
    "no frames": {"shape": [0, 4, 6, 3], "indices": [], "timestamps_s": []},
    "negative sides": {"shape": [2, -4, -6, 3]},
    "true": {"shape": [2, 4, True, 3]},
    "no integers": {"shape": [2.0, 4.0, 6.0, 3.0]},
    "no list": {"shape": "2463"},
    "too few indices": {"indices": [0]},
    "too many times": {"timestamps_s": [0.0] * 100},
    "falling indices": {"indices": [3, 0]},
    "negative indices": {"indices": [-3, 0]},
    "falling times": {"timestamps_s": [1.0, 0.5]},
    "endless times": {"timestamps_s": [0.0, float("inf")]},
    "no times": {"timestamps_s": [0.0, float("nan")]},
    "huge times": {"timestamps_s": [0, 10**400]},
    "texts": {"timestamps_s": ["0", "1"]},
    "no rate": {"fps": "fast"},
    "huge count": {"total_frames": 10**400},
    "a long name": {"backend": "x" * 1000},
    "more fields": {"frames_THWC": 1},
}
ERRORS: dict[str, Any] = {
    "an error of ours for servers": {"type": "ConfigError", "message": "m", "reason": "r"},
    "a module": {"type": "annotations", "message": "m", "reason": "r"},
    "no text": {"type": "MediaError", "message": ["m"], "reason": "r"},
    "a label": {"type": "MediaError", "message": "m", "reason": 'x"} 1\nmetok_secret 1'},
    "a fourth field": {"type": "MediaError", "message": "m", "reason": "r", "status": 200},
    "nothing": None,
}
RAW = {
    "not JSON": b"{",
    "a list": b"[1]",
    "deep": b"[" * 60_000,
    "no text at all": b"\xff" * 99,
    "too long": b" " * (1 << 20),
}
BAD_REPLIES = (*DECODED, *ERRORS, *RAW, "a pipe", "a device", "two files", "slow", "endless")


def main() -> None:
    """Send bad replies until the socket closes."""
    with socket.socket(fileno=0) as sock:
        send(sock, {"ready": True})
        while True:
            request, file = receive(sock)
            assert file is not None, request
            with file:
                file.seek(0)
                name = file.read().decode()
            send(sock, {"taken": True})
            _reply(sock, name)


def _reply(sock: socket.socket, name: str) -> None:
    with anonymous_file() as frames:
        frames.write(bytes(2 * 4 * 6 * 3))
        if name == "valid":
            send(sock, {"decoded": VALID}, frames)
        elif name in DECODED:
            send(sock, {"decoded": VALID | DECODED[name]}, frames)
        elif name in ERRORS:
            send(sock, {"error": ERRORS[name]})
        elif name in RAW:
            sock.sendall(struct.pack("!I", len(RAW[name])) + RAW[name])
        elif name == "a long message":
            send(sock, {"error": {"type": "MediaError", "message": "x" * 9999, "reason": "r"}})
        elif name == "slow":
            sock.sendall(struct.pack("!I", 1000) + b"{")
        elif name == "endless":
            sock.sendall(b"\xff" * (64 << 20))
        else:
            _send_other_file(sock, name, frames)


def _send_other_file(sock: socket.socket, name: str, frames: BinaryIO) -> None:
    body = json.dumps({"decoded": VALID}).encode()
    reader, writer = os.pipe()
    zero = os.open("/dev/zero", os.O_RDONLY)
    fds = {"a pipe": [reader], "a device": [zero], "two files": [reader, frames.fileno()]}[name]
    socket.send_fds(sock, [struct.pack("!I", len(body))], fds)
    sock.sendall(body)
    for fd in (reader, writer, zero):
        os.close(fd)


if __name__ == "__main__":
    main()
