"""One video's turn, and what its client is told where it gets none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from metok_vllm.errors import MediaAbandonedError, MediaBusyError, MediaError
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import Reservation
from metok_vllm.video.requester import Requester


@dataclass(eq=False)
class Turn:
    """One video that waits for a decoder, or has one. `kill` ends its decoding; never blocks.

    `account` is whose memory the frames are; images, which are copied at once, have one of their
    own each.
    """

    requester: Requester
    num_bytes: int
    limits: MediaLimits
    heavy: bool
    account: Requester
    memory: Reservation | None = None
    refusal: MediaError | None = None
    preempted: bool = False
    blocked: bool = False  # a decoder was free for it, but no memory
    short: bool = False  # because there is too little, not because of what others may ask for
    kill: Callable[[], None] | None = None
    since: float = field(default_factory=time.monotonic)
    event: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """Whether it must stop: nobody wants its video, or others go first."""
        return self.preempted or self.refusal is not None

    def end(self) -> None:
        """Wake the thread that waits, or kill the decoder that it waits for."""
        self.event.set()
        if self.kill is not None:
            self.kill()


def abandoned() -> MediaAbandonedError:
    """The request ended, so nobody sees this but the metrics."""
    return MediaAbandonedError("the request has ended; its video is not read")


def closing() -> MediaAbandonedError:
    """The server ends."""
    return MediaAbandonedError("the server is ending; its videos are not read")


def out_of_time(turn: Turn) -> MediaBusyError:
    """The turn did not come in time."""
    limits = turn.limits
    if turn.blocked:
        return MediaBusyError(
            f"the server is decoding as much video as it may hold ({limits.max_pending_bytes} "
            f"bytes); try again later"
        )
    return MediaBusyError(
        f"no decoder was free for the video within {limits.decode_deadline_s:g} s; try again later"
    )


def too_many(limits: MediaLimits) -> MediaBusyError:
    """The queue is full."""
    return MediaBusyError(
        f"{limits.max_waiting} videos wait to be decoded already, the most this server lets wait; "
        f"try again later"
    )
