"""Stage 1 of METok as plain loops over Python lists: read this to know what the fast path must do.

Nothing here shares code with the package. Numbers are Python floats or exact fractions; torch only
holds the patch features that are pooled and packed. Paper: arXiv 2506.02850, section 3.1.

Shapes: T frames, K events, P patches of a frame, R rows and C columns of them, D feature width, N
packed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

FINE, MEDIUM, COARSE = 0, 1, 2


def exact(value: int | float) -> Fraction:
    """The number a user wrote: 0.6 is six tenths, not the binary float beside it."""
    return Fraction(str(value))


def round_half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


# Step 1: how alike neighbouring frames are


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of the angle between two vectors; 0 where one of them is zero."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return dot / length if length > 0 else 0.0


def mean_vector(vectors: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def adjacent_cosines(features: Sequence[Sequence[float]]) -> list[float]:
    """c_t = cos(f_t, f_{t+1}), T-1 values."""
    return [cosine(features[t], features[t + 1]) for t in range(len(features) - 1)]


# Step 2: events


def cut_after(cosines: Sequence[float], num_events: int) -> list[int]:
    """The K-1 frames after which an event ends: lowest cosine first, ties to the earlier."""
    frames = len(cosines) + 1
    events = min(num_events, frames)
    candidates = sorted(range(frames - 1), key=lambda t: (cosines[t], t))
    return sorted(candidates[: events - 1])


def event_of_frames(cosines: Sequence[float], num_events: int) -> list[int]:
    """Event number of every frame, rising from 0."""
    cuts = cut_after(cosines, num_events)
    event = 0
    result = []
    for frame in range(len(cosines) + 1):
        result.append(event)
        if frame in cuts:
            event += 1
    return result


def frames_of_event(event_of: Sequence[int], event: int) -> list[int]:
    return [frame for frame, number in enumerate(event_of) if number == event]


# Step 3 without alignment towers


def fallback_relevance(features: Sequence[Sequence[float]], event_of: Sequence[int]) -> list[float]:
    """How much a frame differs from its event's mean: 1 - cos(f_t, mean of the event's f).

    To six decimals, so that equal frames tie whatever the last bits of their sums say.
    """
    result = []
    for frame, feature in enumerate(features):
        members = [features[t] for t in frames_of_event(event_of, event_of[frame])]
        result.append(round(1.0 - cosine(feature, mean_vector(members)), 6))
    return result


# Steps 4 to 6: key events, key frames, strides


def event_relevances(event_of: Sequence[int], relevance: Sequence[float]) -> list[float]:
    """Of each event, the relevance of its most relevant frame."""
    return [
        max(relevance[t] for t in frames_of_event(event_of, event))
        for event in range(max(event_of) + 1)
    ]


def key_event_count(num_events: int, ratio: float) -> int:
    return math.ceil(exact(ratio) * num_events)


def key_events(event_of: Sequence[int], relevance: Sequence[float], ratio: float) -> set[int]:
    """The top ceil(alpha*K) events by relevance, ties to the earlier."""
    scores = event_relevances(event_of, relevance)
    ranked = sorted(range(len(scores)), key=lambda event: (-scores[event], event))
    return set(ranked[: key_event_count(len(scores), ratio)])


def key_frames_wanted(frames: int | Fraction, per_event: int | float) -> int:
    """m: a count as it stands, a share of the event's frames rounded up."""
    if isinstance(per_event, float):
        return math.ceil(exact(per_event) * frames)
    return per_event


def key_frames(
    event_of: Sequence[int], relevance: Sequence[float], per_event: int | float
) -> set[int]:
    """The top m frames of every event by relevance, ties to the earlier."""
    chosen: set[int] = set()
    for event in range(max(event_of) + 1):
        frames = frames_of_event(event_of, event)
        ranked = sorted(frames, key=lambda t: (-relevance[t], t))
        chosen.update(ranked[: key_frames_wanted(len(frames), per_event)])
    return chosen


def natural_classes(
    event_of: Sequence[int],
    relevance: Sequence[float],
    ratio: float,
    per_event: int | float,
) -> list[int]:
    """Stride class of every frame by steps 4 to 6 alone, without a budget."""
    important_events = key_events(event_of, relevance, ratio)
    important_frames = key_frames(event_of, relevance, per_event)
    result = []
    for frame, event in enumerate(event_of):
        if event in important_events:
            result.append(FINE if frame in important_frames else MEDIUM)
        else:
            result.append(MEDIUM if frame in important_frames else COARSE)
    return result


# The budget: counts fixed before the content is seen


def budget(
    frames: int, num_events: int, ratio: float, per_event: int | float
) -> tuple[int, int, int]:
    """(F2, F4, F8), as if the K events were equally long."""
    events = min(num_events, frames)
    key = key_event_count(events, ratio)
    length = Fraction(frames, events)
    finer = min(Fraction(key_frames_wanted(length, per_event)), length)
    fine = round_half_up(key * finer)
    medium = round_half_up(key * (length - finer) + (events - key) * finer)
    medium = min(medium, frames - fine)
    return fine, medium, frames - fine - medium


def budgeted_classes(
    natural: Sequence[int], relevance: Sequence[float], fine: int, medium: int
) -> list[int]:
    """Hand out the budget in the order (natural class, relevance descending, time)."""
    order = sorted(range(len(natural)), key=lambda t: (natural[t], -relevance[t], t))
    result = [COARSE] * len(natural)
    for place, frame in enumerate(order):
        if place < fine:
            result[frame] = FINE
        elif place < fine + medium:
            result[frame] = MEDIUM
    return result


# Steps 6 and 7: pooling and packing. A grid of patches is square where one number is given.

Grid = int | tuple[int, int]


def sides_of(grid: Grid) -> tuple[int, int]:
    """Rows and columns."""
    return (grid, grid) if isinstance(grid, int) else grid


def pooled_side(side: int, stride: int, mode: str) -> int:
    return side // stride if mode == "average" else math.ceil(Fraction(side, stride))


def pooled_sides(grid: Grid, stride: int, mode: str) -> tuple[int, int]:
    """Rows and columns of a pooled frame."""
    rows, columns = sides_of(grid)
    return pooled_side(rows, stride, mode), pooled_side(columns, stride, mode)


def pool_frame(patches_PD: Tensor, grid: Grid, stride: int, mode: str) -> Tensor:
    """One frame's patches [rows*columns, D], row by row, pooled to those of `pooled_sides`.

    `average` and `area` are means of cells; `area` has the cells that the frame's edge cuts off.
    """
    high, wide = pooled_sides(grid, stride, mode)
    grid_RCD = patches_PD.reshape(*sides_of(grid), -1)
    if mode == "bilinear":
        pooled_DHW = functional.interpolate(
            grid_RCD.permute(2, 0, 1)[None], size=(high, wide), mode="bilinear", align_corners=False
        )[0]
        return pooled_DHW.permute(1, 2, 0).reshape(high * wide, -1)
    cells = []
    for top in range(0, high * stride, stride):
        for left in range(0, wide * stride, stride):
            # The last cells of `area` have what the frame has left.
            cell = grid_RCD[top : top + stride, left : left + stride]
            cells.append(cell.flatten(0, 1).mean(dim=0))
    return torch.stack(cells) if cells else patches_PD[:0]


# With the reduction "select" a frame keeps as many of its dense tokens instead


def standing_out(frame: Sequence[Sequence[float]]) -> list[float]:
    """1 - cos to the mean of the unit vectors, plus the norm min-max-normalised in the frame.

    To five decimals. Norms that differ by at most 1e-4 of the largest are equal and add nothing.
    """
    norms = [math.hypot(*token) for token in frame]
    units = [
        [value / norm if norm else 0.0 for value in token]
        for token, norm in zip(frame, norms, strict=True)
    ]
    middle = mean_vector(units)
    least, most = min(norms), max(norms)
    equal = most - least <= 1e-4 * most
    size = [0.0 if equal else (norm - least) / (most - least) for norm in norms]
    scores = [1 - cosine(token, middle) + add for token, add in zip(frame, size, strict=True)]
    return [round(score, 5) for score in scores]


def best_places(frame: Sequence[Sequence[float]], count: int) -> list[int]:
    """Places of the `count` tokens that stand out most, rising; ties to the earlier place."""
    score = standing_out(frame)
    return sorted(sorted(range(len(frame)), key=lambda place: (-score[place], place))[:count])


def select_frame(patches_PD: Tensor, grid: Grid, stride: int, mode: str, dense: int = 2) -> Tensor:
    """As many of the frame's dense tokens as pooling at `stride` makes, in grid order."""
    dense_PD = pool_frame(patches_PD, grid, dense, mode)
    count = math.prod(pooled_sides(grid, stride, mode))
    return dense_PD[best_places(dense_PD.double().tolist(), count)]


def as_it_is(patches_PD: Tensor, grid: Grid, stride: int, mode: str) -> Tensor:
    """A frame that was encoded at the resolution of its stride."""
    assert len(patches_PD) == math.prod(pooled_sides(grid, stride, mode))
    return patches_PD


# Where newlines stand: after each event (LLaVA-OneVision), each pooled row (LLaVA-Video), nowhere.
EVENT, ROW, NOWHERE = "event", "row", "nowhere"


def frame_length(grid: Grid, stride: int, mode: str, newlines: str) -> int:
    """Tokens of one frame, the newlines of its rows included."""
    rows, columns = pooled_sides(grid, stride, mode)
    return rows * columns + (rows if newlines == ROW else 0)


@dataclass(frozen=True)
class Packed:
    """What the decoder is given, and which event every token belongs to.

    `separators` are the tokens that are text, by their index.
    """

    tokens_ND: Tensor
    event_of_token: list[int]
    separators: list[int]


def pack(
    patches_TPD: Tensor | Sequence[Tensor],
    classes: Sequence[int],
    event_of: Sequence[int],
    newline_D: Tensor,
    grid: Grid,
    strides: Sequence[int],
    mode: str,
    newlines: str = EVENT,
    reduce: str = "pool",
    before: Sequence[Tensor] = (),
    after: Sequence[Tensor] = (),
) -> Packed:
    """Frames in time order at their class's stride, with newlines where `newlines` says.

    `before` and `after` are the separators of each frame, [number, D]; they are of its event.
    `reduce` is "pool", "select" (selected tokens form no rows) or "resize", where each frame's
    patches already have the resolution of its stride.
    """
    assert reduce != "select" or newlines != ROW
    reduced = {"pool": pool_frame, "select": select_frame, "resize": as_it_is}[reduce]
    parts: list[Tensor] = []
    event_of_token: list[int] = []
    separators: list[int] = []
    last = len(event_of) - 1
    for frame, event in enumerate(event_of):
        stride = strides[classes[frame]]
        pooled = reduced(patches_TPD[frame], grid, stride, mode)
        if newlines == ROW:
            high, wide = pooled_sides(grid, stride, mode)
            rows = [
                torch.cat([pooled[y * wide : (y + 1) * wide], newline_D[None]]) for y in range(high)
            ]
            pooled = torch.cat(rows) if rows else pooled
        for rows_ND, is_text in (
            (before[frame] if before else pooled[:0], True),
            (pooled, False),
            (after[frame] if after else pooled[:0], True),
        ):
            if is_text:
                first = len(event_of_token)
                separators += range(first, first + len(rows_ND))
            parts.append(rows_ND)
            event_of_token += [event] * len(rows_ND)
        if newlines == EVENT and (frame == last or event_of[frame + 1] != event):
            parts.append(newline_D[None])
            event_of_token.append(event)
    return Packed(torch.cat(parts), event_of_token, separators)
