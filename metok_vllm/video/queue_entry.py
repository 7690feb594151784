"""One video in the queue for decoders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from metok_vllm.errors import MediaBusyError, MediaError
from metok_vllm.video.limits import MediaLimits, flag_of
from metok_vllm.video.memory import Reservation
from metok_vllm.video.requester import Requester


@dataclass(eq=False)
class QueueEntry:
    """One video that waits for a decoder or has one.

    `account` is the requester whose memory the frames count as. `kill` ends the decoding without
    blocking; it is None when nothing is decoded.
    """

    requester: Requester
    num_bytes: int
    limits: MediaLimits
    heavy: bool
    account: Requester
    memory: Reservation | None = None
    refusal: MediaError | None = None
    preempted: bool = False
    blocked: bool = False  # a decoder was free, but no memory
    short: bool = False  # blocked because memory is used, not because other requests may claim it
    kill: Callable[[], None] | None = None
    since: float = field(default_factory=time.monotonic)
    event: threading.Event = field(default_factory=threading.Event)

    @property
    def stopped(self) -> bool:
        """Whether its decoding must end: it is refused, or preempted for another video."""
        return self.preempted or self.refusal is not None

    def stop(self) -> None:
        """Wake the thread that waits for a decoder, or kill the decoder that it waits for."""
        self.event.set()
        if self.kill is not None:
            self.kill()

    def timeout_error(self) -> MediaBusyError:
        """Why it did not get a decoder in time."""
        if self.blocked:
            most_bytes = self.limits.max_pending_bytes
            reason = (
                f"the server is decoding as much video as it may hold ({most_bytes} bytes, "
                f"{flag_of('max_pending_bytes')})"
            )
        else:
            seconds = self.limits.decode_deadline_s
            reason = f"no decoder was free for the video within {seconds:g} s"
        return MediaBusyError(f"{reason}; try again later")
