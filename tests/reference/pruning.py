"""Which visual tokens stages 2 and 3 of METok keep, in exact arithmetic over Python lists.

Nothing here knows a model: scores come in, indices go out. Shares are the decimals that a user
wrote. Paper: arXiv 2506.02850, sections 3.2 and 3.3.

Symbols: T frames, K events, N1 visual tokens after stage 1, M0 and M1 those left at the first and
the second pruning layer, Kt and Nt tokens of key and of other events were all events equally long.
Separators, the text tokens inside a video, are in N1 and all that is left; M0, M1, Kt and Nt count
the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tests.reference.stage1 import (
    EVENT,
    Grid,
    exact,
    frame_length,
    key_event_count,
    key_frames_wanted,
)


def planned_tokens(
    frames: int,
    encoded: int,
    num_events: int,
    key_event_ratio: float,
    key_frames_per_event: int | float,
    strides: Sequence[int],
    grid: Grid,
    keep_ratio: float,
    stage1: bool,
    mode: str = "bilinear",
    newlines: str = EVENT,
    separators: int = 0,
) -> tuple[int, int, int, int]:
    """(N1, S + M0, S + M1, S): tokens of one video before and after each pruning layer.

    `encoded` is N1, newlines and S separators included; frames are pooled by `mode` from
    a grid of patches.
    """
    if separators:
        rest = encoded - separators
        of_rest = (frames, rest, num_events, key_event_ratio, key_frames_per_event, strides, grid)
        _, first, second, _ = planned_tokens(*of_rest, keep_ratio, stage1, mode, newlines)
        return encoded, separators + first, separators + second, separators
    events = min(num_events, frames)
    keep = exact(keep_ratio)
    if events == 1:
        return encoded, math.ceil(keep * encoded), math.ceil(keep * keep * encoded), 0
    key = key_event_count(events, key_event_ratio)
    if stage1:
        in_key, in_others = equal_event_tokens(
            frames, events, key_frames_per_event, strides, grid, mode, newlines
        )
        dense_key, dense_others = key * in_key, (events - key) * in_others
        key_tokens = encoded * dense_key / (dense_key + dense_others)
    else:
        key_tokens = Fraction(encoded * key, events)
    other_tokens = encoded - key_tokens
    first = math.ceil(keep * key_tokens + keep / 2 * other_tokens)
    return encoded, first, math.ceil(keep * keep * key_tokens), 0


def equal_event_tokens(
    frames: int,
    events: int,
    per_event: int | float,
    strides: Sequence[int],
    grid: Grid,
    mode: str = "bilinear",
    newlines: str = EVENT,
) -> tuple[Fraction, Fraction]:
    """Tokens of one key event and of one other event of T/K frames, newline included."""
    length = Fraction(frames, events)
    finer = min(Fraction(key_frames_wanted(length, per_event)), length)
    fine, medium, coarse = (frame_length(grid, stride, mode, newlines) for stride in strides)
    closing = 1 if newlines == EVENT else 0
    key = finer * fine + (length - finer) * medium + closing
    other = finer * medium + (length - finer) * coarse + closing
    return key, other


def quota_weights(key: Sequence[bool], entry: int) -> list[Fraction]:
    """What a token of each event weighs in the quotas of pruning layer 0 or 1."""
    other = (Fraction(1, 2), Fraction(0))[entry]
    return [Fraction(1) if is_key else other for is_key in key]


def share_out(
    total: int,
    sizes: Sequence[int],
    weights: Sequence[Fraction],
    relevance: Sequence[float],
) -> list[int]:
    """How many of each event's `sizes` tokens stay, `total` of them together.

    In proportion to weight times size by largest remainders (ties: the earlier event), capped at
    the size. What is left over fills up the most relevant events first (ties: the earlier).
    """
    assert 0 <= total <= sum(sizes)
    events = range(len(sizes))
    parts = [weight * size for weight, size in zip(weights, sizes, strict=True)]
    counts = [0] * len(sizes)
    if sum(parts) > 0:
        exact_counts = [total * part / sum(parts) for part in parts]
        counts = [math.floor(count) for count in exact_counts]
        remainders = [exact_counts[e] - counts[e] for e in events]
        by_remainder = sorted(events, key=lambda e: (-remainders[e], e))
        for event in by_remainder[: total - sum(counts)]:
            counts[event] += 1
    counts = [min(count, size) for count, size in zip(counts, sizes, strict=True)]
    for event in sorted(events, key=lambda e: (-relevance[e], e)):
        counts[event] += min(total - sum(counts), sizes[event] - counts[event])
    assert sum(counts) == total
    return counts


@dataclass(frozen=True)
class Selection:
    """Indices that stay, rising, and by how much the closest decision was made.

    `margin` is the smallest gap between a last kept and a first dropped score, infinite where
    nothing had to be decided: below 1e-7 another order of summation may decide otherwise.
    """

    kept: list[int]
    margin: float


def select(scores: Sequence[float], event_of: Sequence[int], counts: Sequence[int]) -> Selection:
    """Of each event e the counts[e] best-scored tokens, ties to the earlier."""
    kept: list[int] = []
    margin = math.inf
    for event, count in enumerate(counts):
        tokens = [token for token, number in enumerate(event_of) if number == event]
        ranked = sorted(tokens, key=lambda token: (-scores[token], token))
        kept += ranked[:count]
        if 0 < count < len(ranked):
            margin = min(margin, scores[ranked[count - 1]] - scores[ranked[count]])
    return Selection(sorted(kept), margin)


def staying(
    entry: int,
    total: int,
    scores: Sequence[float],
    event_of: Sequence[int],
    key: Sequence[bool],
    relevance: Sequence[float],
    separators: Collection[int] = (),
) -> Selection:
    """`total` tokens of a video that pruning layer `entry` (0, 1, 2) lets pass.

    All `separators` are among them; the others are shared out over the events. The last layer lets
    no other pass.
    """
    visual = [token for token in range(len(scores)) if token not in separators]
    events = [event_of[token] for token in visual]
    counts = [0] * len(key)
    if entry < 2:
        sizes = [events.count(event) for event in range(len(key))]
        weights = quota_weights(key, entry)
        counts = share_out(total - len(separators), sizes, weights, relevance)
    chosen = select([scores[token] for token in visual], events, counts)
    kept = sorted([*separators, *(visual[index] for index in chosen.kept)])
    assert len(kept) == total
    return Selection(kept, chosen.margin)


def held_counts(visual: Sequence[int], share: float, unit: int = 1) -> list[int]:
    """How many of each video's `visual` tokens a layer holds for decoding: ceil(share * n).

    What goes is a multiple of `unit` over all videos; what is too much stays, with the first videos
    that lose tokens.
    """
    held = [math.ceil(exact(share) * count) for count in visual]
    while (sum(visual) - sum(held)) % unit:
        first = next(i for i, count in enumerate(visual) if held[i] < count)
        held[first] += 1
    return held


def decode_kept(scores: Sequence[float], count: int, separators: Collection[int] = ()) -> Selection:
    """The `count` best-scored visual tokens of a video, whatever their event, and all its
    separators."""
    visual = [token for token in range(len(scores)) if token not in separators]
    chosen = select([scores[token] for token in visual], [0] * len(visual), [count])
    kept = sorted([*separators, *(visual[index] for index in chosen.kept)])
    return Selection(kept, chosen.margin)
