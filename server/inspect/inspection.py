"""The result of stage 1 for one video as plain values, which `metok inspect` prints and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError
from metok_vllm.events import COARSE, FINE, MEDIUM, EventMap
from metok_vllm.plan.layout import VideoLayout

RULES = ("budgeted", "natural")


@dataclass(frozen=True)
class InspectedEvent:
    """A span of the video, from its first frame to the first frame of the next event."""

    start_s: float
    end_s: float
    relevance: float
    key: bool


@dataclass(frozen=True)
class InspectedFrame:
    """One sampled frame: its place, its relevance and its stride.

    `stride_class` is 0 for the finest of the three strides. `stride` follows the chosen rule,
    `natural_stride` the paper's rule, which has no token budget.
    """

    index: int
    timestamp_s: float
    event: int
    relevance: float
    stride_class: int
    stride: int
    natural_stride: int
    key_frame: bool


@dataclass(frozen=True)
class Inspection:
    """Everything `metok inspect` shows.

    `similarity` is the cosine of each frame but the first with the frame before it.
    `tokens_per_frame` has one value per stride class, finest first.
    """

    question: str
    rule: str
    query_source: str
    duration_s: float
    events: tuple[InspectedEvent, ...]
    frames: tuple[InspectedFrame, ...]
    similarity: tuple[float, ...]
    strides: tuple[int, ...]
    tokens_per_frame: tuple[int, ...]
    dense_tokens: int
    encoded_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; values that the server's `metok` object has too have the same names."""
        frames = [asdict(frame) for frame in self.frames]
        for frame in frames:
            del frame["stride_class"]
        return {
            "question": self.question,
            "rule": self.rule,
            "query_source": self.query_source,
            "duration_s": self.duration_s,
            "events": [asdict(event) for event in self.events],
            "frames": frames,
            "similarity": list(self.similarity),
            "visual_tokens": {"dense": self.dense_tokens, "encoded": self.encoded_tokens},
        }


def build_inspection(
    event_map: EventMap,
    similarity: Sequence[float],
    indices: Sequence[int],
    timestamps_s: Sequence[float],
    duration_s: float,
    *,
    question: str,
    query_source: str,
    video: VideoLayout,
    config: METokConfig,
    rule: str = "budgeted",
) -> Inspection:
    """Convert an event map (T frames) to plain values under one of the two rules.

    `video` is the layout of the T frames. Raises ConfigError for an unknown rule.
    """
    if rule not in RULES:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {rule!r}", "rule")
    event_T = event_map.event_T.tolist()
    natural_T = event_map.natural_T.tolist()
    class_T = event_map.class_T.tolist() if rule == "budgeted" else natural_T
    key_E = event_map.key_E.tolist()
    times = [float(t) for t in timestamps_s]
    per_frame = tuple(video.frame_tokens(stride) for stride in config.strides)
    frames = tuple(
        InspectedFrame(
            index=int(indices[t]),
            timestamp_s=times[t],
            event=event_T[t],
            relevance=relevance,
            stride_class=class_T[t],
            stride=config.strides[class_T[t]],
            natural_stride=config.strides[natural_T[t]],
            key_frame=natural_T[t] == (FINE if key_E[event_T[t]] else MEDIUM),
        )
        for t, relevance in enumerate(event_map.relevance_T.tolist())
    )
    assert all(0 <= c <= COARSE for c in class_T)
    starts = [times[event_T.index(e)] for e in range(len(key_E))]
    ends = [*starts[1:], max(float(duration_s), times[-1])]
    relevance_E = event_map.event_relevance_E.tolist()
    events = tuple(
        InspectedEvent(*values) for values in zip(starts, ends, relevance_E, key_E, strict=True)
    )
    return Inspection(
        question=question,
        rule=rule,
        query_source=query_source,
        duration_s=ends[-1],
        events=events,
        frames=frames,
        similarity=tuple(float(c) for c in similarity),
        strides=config.strides,
        tokens_per_frame=per_frame,
        dense_tokens=video.dense_tokens(),
        encoded_tokens=sum(per_frame[c] for c in class_T)
        + video.separators
        + len(events) * video.closes_events,
    )
