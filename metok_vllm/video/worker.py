"""A decode worker: `python -m metok_vllm.video.worker`, started and killed by the pool.

Standard input is a socket. Every request carries a video or pictures. The worker acknowledges it
first, so that an earlier exit is not blamed on the file. It answers with frames, with an error, or,
for a `light` request, that the work is heavy. It exits when the socket closes, and by an alarm when
a decoder hangs without a pool to kill it. Its memory is limited, so a hostile file cannot exhaust
the server's.
"""

from __future__ import annotations

import logging
import resource
import signal
import socket
from dataclasses import asdict, replace
from typing import Any, BinaryIO

from metok_vllm.errors import MediaError, MediaTooLargeError, MetokError
from metok_vllm.processes.lifetime import watch_socket
from metok_vllm.video.channel import ChannelClosedError, anonymous_file, receive, send
from metok_vllm.video.decoding import decode
from metok_vllm.video.frames import Decoded
from metok_vllm.video.limits import MediaLimits, Transport, flag_of

logger = logging.getLogger(__name__)

# Pixels that a core decodes in about four seconds (H.264, 1280 x 720).
LIGHT_PIXELS = 4_000_000_000
# The pool kills at the deadline. The alarm is later, for workers whose pool has exited.
ALARM_MARGIN_S = 2.0


class _HeavyError(Exception):
    """The work is more than a light request may take."""


def main() -> None:
    """Answer requests from the socket at standard input until it closes."""
    # Ctrl-C reaches the whole process group, but the server ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with socket.socket(fileno=0) as sock:
        watch_socket(sock.fileno())  # exits while a video is decoded, too
        try:
            send(sock, {"ready": True})
            while True:
                request, file = receive(sock)
                assert file is not None, "a request without a file"
                send(sock, {"taken": True})
                _answer(sock, request, file)
        except ChannelClosedError:
            return


def _answer(sock: socket.socket, request: dict[str, Any], file: BinaryIO) -> None:
    limits = MediaLimits(**request["limits"])
    what = "pictures" if "sizes" in request else "video"
    _limit_memory(limits.worker_memory_bytes)
    signal.setitimer(signal.ITIMER_REAL, limits.decode_deadline_s + ALARM_MARGIN_S)
    with file, anonymous_file() as output:
        reply: dict[str, Any]
        try:
            reply = {"decoded": asdict(_decode(request, file, limits, output))}
        except _HeavyError:
            reply = {"heavy": True}
        except MetokError as error:
            reply = {"error": _describe(error)}
        except MemoryError:
            failure = MediaError(
                f"decoding the {what} takes more memory than this server allows "
                f"({flag_of('worker_memory_bytes')})",
                "decode_failed",
            )
            reply = {"error": _describe(failure)}
        except Exception:
            logger.exception("The decoder failed with an unexpected error.")
            failure = MediaError(f"the {what} cannot be decoded", "decode_failed")
            reply = {"error": _describe(failure)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(sock, reply, output if "decoded" in reply else None)


def _decode(
    request: dict[str, Any], file: BinaryIO, limits: MediaLimits, output: BinaryIO
) -> Decoded:
    """Raises _HeavyError where a light request takes more work than LIGHT_PIXELS."""
    light = request["light"] and limits.max_walked_pixels > LIGHT_PIXELS
    limits = replace(limits, max_walked_pixels=LIGHT_PIXELS) if light else limits
    try:
        if "sizes" in request:
            # Imported here because most workers never read pictures.
            from metok_vllm.video.pictures import decode_pictures

            return decode_pictures(file, request, limits, output)
        transport = Transport(request["transport"])
        return decode(file, request["num_frames"], request["fps"], limits, output, transport)
    except MediaTooLargeError as error:
        if light and error.reason == "too_many_frames_walked":
            raise _HeavyError from None
        raise


def _describe(error: MetokError) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "reason": getattr(error, "reason", "decode_failed"),
    }


def _limit_memory(num_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        num_bytes = min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))


if __name__ == "__main__":
    main()
