"""A decode worker: `python -m metok_vllm.video.worker`, started and killed by the pool.

Standard input is a socket. Every request carries a video; it is acknowledged, so that a death
before that is not blamed on the video, and answered with its frames or an error. The process ends
when the socket closes, and by its own alarm when a decoder hangs and nobody is left to kill it.
Memory is capped, so that a hostile file cannot take the server's.
"""

from __future__ import annotations

import logging
import resource
import signal
import socket
from dataclasses import asdict
from typing import Any, BinaryIO

from metok_vllm.errors import MediaError, MetokError
from metok_vllm.video.channel import ChannelClosedError, anonymous_file, receive, send
from metok_vllm.video.decoding import decode
from metok_vllm.video.limits import MediaLimits

logger = logging.getLogger(__name__)

# The pool kills at the deadline; the alarm comes after it and only matters without a pool.
ALARM_MARGIN_S = 2.0


def main() -> None:
    """Answer requests from the socket at standard input until it closes."""
    # Ctrl-C reaches the whole process group; the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with socket.socket(fileno=0) as sock:
        try:
            send(sock, {"ready": True})
            while True:
                request, video = receive(sock)
                assert video is not None, "a request without a video"
                send(sock, {"taken": True})
                _answer(sock, request, video)
        except ChannelClosedError:
            return


def _answer(sock: socket.socket, request: dict[str, Any], video: BinaryIO) -> None:
    limits = MediaLimits(**request["limits"])
    _limit_memory(limits.worker_memory_bytes)
    signal.setitimer(signal.ITIMER_REAL, limits.decode_deadline_s + ALARM_MARGIN_S)
    with video, anonymous_file() as output:
        try:
            decoded = decode(video, request["num_frames"], request["fps"], limits, output)
            reply = {"decoded": asdict(decoded)}
        except MetokError as error:
            reply = {"error": _describe(error)}
        except MemoryError:
            failure = MediaError(
                "decoding the video takes more memory than this server allows", "decode_failed"
            )
            reply = {"error": _describe(failure)}
        except Exception:
            logger.exception("a video made the decoder fail in an unknown way")
            failure = MediaError("the video cannot be decoded", "decode_failed")
            reply = {"error": _describe(failure)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(sock, reply, output if "decoded" in reply else None)


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
