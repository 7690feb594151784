"""Events of encoded videos, kept for the decoder's prefill and for the report of a request.

vLLM's encoder cache may serve a video long after it was encoded, so events are kept beside it: a
few small tensors per video, the least recently used dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.devices import to_host
from metok_vllm.events import EventMap
from metok_vllm.models.stopwatch import Stopwatch
from metok_vllm.plan.layout import VideoLayout

MIN_CAPACITY = 1024


@dataclass(frozen=True)
class StoredEvents:
    """The events of one video, and the times of its encoding and of its last prefill.

    `video` is its layout, of whose separators only the numbers are kept. `cached`: whether its
    features came from the feature cache, None without one. `on_host` may be read once `encoding`
    has ended. `prefill` times the decoder step that pruned this video, one of `videos_in_prefill`.
    """

    events: EventMap
    on_host: EventMap
    config: METokConfig
    video: VideoLayout
    cached: bool | None
    encoding: Stopwatch
    encoding_reported: bool = False
    prefill: Stopwatch | None = None
    videos_in_prefill: int = 0

    @classmethod
    def of(
        cls,
        events: EventMap,
        config: METokConfig,
        video: VideoLayout,
        cached: bool | None,
        encoding: Stopwatch,
    ) -> StoredEvents:
        """Events whose copy to the host is queued; ends the `encoding` watch."""
        copies = [to_host(getattr(events, field.name)) for field in fields(EventMap)]
        encoding.stop()
        return cls(events, EventMap(*copies), config, video.without_ids(), cached, encoding)

    def seconds(self) -> dict[str, float | None]:
        """Times that were not reported yet; None for a step that the device has not ended."""
        names = ("seconds", "own_seconds", "prefill_seconds", "pruning_seconds")
        times: dict[str, float | None] = dict.fromkeys(names)
        whole, towers = self.encoding.seconds(), self.encoding.lap_seconds()
        if not self.encoding_reported and whole is not None and towers is not None:
            times |= {"seconds": whole, "own_seconds": whole - towers}
        if self.prefill is not None:
            whole, pruning = self.prefill.seconds(), self.prefill.lap_seconds()
            if whole is not None and pruning is not None:
                share = 1 / self.videos_in_prefill
                times |= {"prefill_seconds": whole * share, "pruning_seconds": pruning * share}
        return times


class EventStore:
    """Events by the video's key in vLLM's caches, of at most `capacity` videos."""

    def __init__(self, capacity: int = MIN_CAPACITY) -> None:
        self.capacity = max(capacity, MIN_CAPACITY)
        self.entries: OrderedDict[str, StoredEvents] = OrderedDict()

    def put(self, key: str, stored: StoredEvents) -> None:
        """Keep the events of a video in place of older ones."""
        self.entries[key] = stored
        self.entries.move_to_end(key)
        while len(self.entries) > self.capacity:
            self.entries.popitem(last=False)

    def get(self, key: str) -> StoredEvents | None:
        """The events of a video, now the most recently used; None if they are not stored."""
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key]

    def record_prefill(self, keys: Sequence[str], watch: Stopwatch) -> None:
        """Record a decoder step that pruned these videos; the laps of `watch` are stage 2's."""
        for key in keys:
            if key in self.entries:
                stored = self.entries[key]
                self.entries[key] = replace(stored, prefill=watch, videos_in_prefill=len(keys))

    def report(self, key: str) -> dict[str, Any] | None:
        """Events and times of a video as plain values; None if they are not stored.

        Each time is reported once. `seconds` is the time of its encoding, `own_seconds` the part
        that is neither a tower nor the projector. `prefill_seconds` is its share of the decoder
        step that pruned it, `pruning_seconds` the part of stage 2. `cached` comes with them.
        """
        stored = self.get(key)
        if stored is None:
            return None
        stored.encoding.wait()
        self.entries[key] = replace(stored, encoding_reported=True, prefill=None)
        events = stored.on_host
        return {
            **stored.seconds(),
            "cached": None if stored.encoding_reported else stored.cached,
            "event_of_frame": events.event_T.tolist(),
            "relevance_of_frame": events.relevance_T.tolist(),
            "class_of_frame": events.class_T.tolist(),
            "event_relevance": events.event_relevance_E.tolist(),
            "event_key": events.key_E.tolist(),
        }
