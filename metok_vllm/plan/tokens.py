"""Frames and tokens of a video, from its length and the settings alone.

vLLM lays out the prompt before the pixels are processed, so counts must not depend on content: they
are those of equally long events. Content decides which frame gets which class. Pure Python and
exact: shares are read as the decimals that users write (0.6 * 5 is 3, not 3.01).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from metok_vllm.config import METokConfig

DENSE_STRIDE = 2  # of every frame in the model's own input


@dataclass(frozen=True)
class FrameBudget:
    """Number of frames in each stride class; the three add up to the frames of the video."""

    fine: int
    medium: int
    coarse: int


def key_event_count(num_events: int, ratio: float) -> int:
    """ceil(alpha * K), the number of key events among K."""
    return math.ceil(_exact(ratio) * num_events)


def key_frame_count(num_frames: int | Fraction, key_frames_per_event: int | float) -> int:
    """Key frames of an event: a count as it is, a share of the event's length rounded up."""
    if isinstance(key_frames_per_event, int):
        return key_frames_per_event
    return math.ceil(_exact(key_frames_per_event) * num_frames)


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


def pooled_length(grid: int, stride: int, mode: str = "bilinear") -> int:
    """Tokens of one frame of grid x grid patches pooled at `stride`."""
    side = -(-grid // stride) if mode == "bilinear" else grid // stride
    return side * side


def encoded_tokens(num_frames: int, grid: int, config: METokConfig, mode: str = "bilinear") -> int:
    """N1: visual tokens after stage 1, one newline per event included."""
    budget = frame_budget(
        num_frames, config.num_events, config.key_event_ratio, config.key_frames_per_event
    )
    fine, medium, coarse = (pooled_length(grid, stride, mode) for stride in config.strides)
    return (
        budget.fine * fine
        + budget.medium * medium
        + budget.coarse * coarse
        + min(config.num_events, num_frames)
    )


def kept_tokens(num_frames: int, grid: int, rule_keep: float, mode: str = "bilinear") -> int:
    """ceil(rule_keep * T * t(2)): dense tokens that an encoder method keeps, no newline."""
    return math.ceil(_exact(rule_keep) * num_frames * pooled_length(grid, DENSE_STRIDE, mode))


def dense_tokens(num_frames: int, grid: int, mode: str = "bilinear") -> int:
    """N0: the model's own input, every frame at stride 2 and one newline."""
    return num_frames * pooled_length(grid, DENSE_STRIDE, mode) + 1


def _exact(share: float) -> Fraction:
    return Fraction(repr(share))


def _round_half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))
