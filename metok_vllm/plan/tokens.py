"""Frames in each stride class, from the video's length and the settings alone.

vLLM lays out the prompt before the pixels are processed, so counts must not depend on content: they
are those of equally long events. Content decides which frame gets which class. Pure Python and
exact: shares are read as the decimals that users write (0.6 * 5 is 3, not 3.01).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class FrameBudget:
    """Number of frames in each stride class; the three add up to the frames of the video."""

    fine: int
    medium: int
    coarse: int

    @property
    def counts(self) -> tuple[int, int, int]:
        """The three in the order of the strides."""
        return self.fine, self.medium, self.coarse


def key_event_count(num_events: int, ratio: float) -> int:
    """ceil(alpha * K), the number of key events among K."""
    return math.ceil(exact(ratio) * num_events)


def key_frame_count(num_frames: int | Fraction, key_frames_per_event: int | float) -> int:
    """Key frames of an event: a count as it is, a share of the event's length rounded up."""
    if isinstance(key_frames_per_event, int):
        return key_frames_per_event
    return math.ceil(exact(key_frames_per_event) * num_frames)


def frame_budget(
    num_frames: int,
    num_events: int,
    key_event_ratio: float,
    key_frames_per_event: int | float,
) -> FrameBudget:
    """Frames per stride class as if the K = min(num_events, T) events were equally long."""
    assert num_frames >= 1
    K = min(num_events, num_frames)
    length = Fraction(num_frames, K)
    key_events = key_event_count(K, key_event_ratio)
    key_frames = min(Fraction(key_frame_count(length, key_frames_per_event)), length)
    fine = min(_round_half_up(key_events * key_frames), num_frames)
    medium = _round_half_up(key_events * (length - key_frames) + (K - key_events) * key_frames)
    medium = min(medium, num_frames - fine)
    return FrameBudget(fine, medium, num_frames - fine - medium)


def exact(share: float) -> Fraction:
    """A share as the decimal that users write."""
    return Fraction(repr(share))


def _round_half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
