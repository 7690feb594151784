"""The rules to compare with, over Python lists: what the tensor versions must reproduce.

Shapes: T frames, P tokens of a frame, D features; x is a list [T][P][D], an index counts T * P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tests.reference.pruning import share_out
from tests.reference.stage1 import best_places

Video = list[list[list[float]]]


def evs(x: Video, keep: int) -> list[int]:
    """The first frame, then the tokens that changed most since the frame before."""
    P = len(x[0])
    changed = []
    for t, frame in enumerate(x):
        for p, token in enumerate(frame):
            changed.append(math.inf if t == 0 else 1 - cosine(token, x[t - 1][p]))
    ranked = sorted(range(len(x) * P), key=lambda index: (-changed[index], index))
    return sorted(ranked[:keep])


def vidcom2(x: Video, keep: int) -> list[int]:
    """Of each frame, as many tokens as its budget says: those least like frame and video."""
    P = len(x[0])
    to_video, to_frame = similarities(x)
    kept = []
    for t, count in enumerate(vidcom2_budgets(to_video, keep)):
        like = [a + b for a, b in zip(to_video[t], to_frame[t], strict=True)]
        ranked = sorted(range(P), key=lambda p: (like[p], p))
        kept += sorted(t * P + p for p in ranked[:count])
    return kept


def similarities(x: Video) -> tuple[list[list[float]], list[list[float]]]:
    """Likeness to the mean of the video and of the frame, on the calmer half of the channels."""
    D = len(x[0][0])
    tokens = [token for frame in x for token in frame]
    by_variance = sorted(range(D), key=lambda d: variance([token[d] for token in tokens]))
    channels = by_variance[: max(1, D // 2)]
    units = [[unit([token[d] for d in channels]) for token in frame] for frame in x]
    of_video = mean([token for frame in units for token in frame])
    to_video = [[likeness(token, of_video) for token in frame] for frame in units]
    to_frame = [[likeness(token, mean(frame)) for token in frame] for frame in units]
    return to_video, to_frame


def vidcom2_budgets(to_video: Sequence[Sequence[float]], keep: int) -> list[int]:
    """Tokens of each frame by largest remainders, `keep` in all."""
    T, P = len(to_video), len(to_video[0])
    distinct = [-sum(frame) / P for frame in to_video]
    powers = [math.exp((value - max(distinct)) / 0.01) for value in distinct]
    p = [power / sum(powers) for power in powers]
    share = [min(1.0, keep / (T * P) * (1 + value - sum(p) / T)) for value in p]
    weights = [Fraction(round(value / max(share) * (1 << 20))) for value in share]
    return share_out(keep, [P] * T, weights, distinct)


def vcast(x: Video, keep: int) -> list[int]:
    """Of each frame, as many tokens as its budget says: those that stand out most."""
    P = len(x[0])
    middles = [mean([unit(token) for token in frame]) for frame in x]
    kept = []
    for t, count in enumerate(vcast_budgets(vcast_turns(middles), P, keep)):
        kept += [t * P + place for place in best_places(x[t], count)]
    return kept


def vcast_turns(middles: Sequence[Sequence[float]]) -> list[float]:
    """c to four decimals; a step shorter than a thousandth has no direction."""
    turns = []
    for t in range(len(middles)):
        turn = 1.0
        if 0 < t < len(middles) - 1:
            steps = [
                [b - a for a, b in zip(middles[i], middles[i + 1], strict=True)] for i in (t - 1, t)
            ]
            if all(math.hypot(*step) >= 1e-3 for step in steps):
                turn -= cosine(*steps)
        turns.append(round(turn, 4))
    return turns


def vcast_budgets(turns: Sequence[float], P: int, keep: int) -> list[int]:
    """One token a frame, then shares of the frames with room, again until none has too many."""
    T = len(turns)
    if keep < T:
        first = sorted(range(T), key=lambda t: (-turns[t], t))[:keep]
        return [int(t in first) for t in range(T)]
    powers = [math.exp((turn - max(turns)) / 0.7) for turn in turns]
    weights = [round(power * (1 << 20)) for power in powers]
    full: set[int] = set()
    while True:
        rest = keep - T - len(full) * (P - 1)
        open_ = [t for t in range(T) if t not in full]
        whole = sum(weights[t] for t in open_)
        share = {t: Fraction(rest * weights[t], whole) for t in open_}
        over = {t for t in open_ if share[t] > P - 1}
        if not over:
            break
        full |= over
    counts = [P if t in full else 1 + math.floor(share[t]) for t in range(T)]
    by_remainder = sorted(open_, key=lambda t: (math.floor(share[t]) - share[t], t))
    for t in by_remainder[: keep - sum(counts)]:
        counts[t] += 1
    return counts


def likeness(token: Sequence[float], centre: Sequence[float]) -> float:
    """Five Gaussian kernels of growing width, summed."""
    distance = sum((a - b) ** 2 for a, b in zip(token, centre, strict=True))
    return sum(math.exp(-distance / (2 * 2**k)) for k in range(-3, 2))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(u * v for u, v in zip(unit(a), unit(b), strict=True))


def unit(a: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in a))
    return [value / length if length else 0.0 for value in a]


def mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def variance(values: Sequence[float]) -> float:
    middle = sum(values) / len(values)
    return sum((value - middle) ** 2 for value in values) / len(values)
