"""Confidence intervals by resampling videos, since questions about one video are correlated.

A percentile bootstrap over clusters (Efron and Tibshirani, 1993, chapter 13; Field and Welsh,
2007). All settings share one set of draws, so differences are paired. If every answer is right, the
interval has no width: no failure was observed. One video gives no interval.

Shape suffixes: R draws, V videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
LEVEL = 0.95
LEAST_VIDEOS = 2

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, which is None with fewer than two videos."""

    mean: float
    low: float | None
    high: float | None


class Draws:
    """Counts of each of `videos` in `resamples` draws of as many videos, [R, V].

    Raises ValueError without videos.
    """

    def __init__(self, videos: Sequence[str], seed: int = 0, resamples: int = RESAMPLES) -> None:
        self.index = {name: place for place, name in enumerate(dict.fromkeys(videos))}
        count = len(self.index)
        if not count:
            raise ValueError("there are no videos to draw from")
        rng = np.random.default_rng(seed)
        self.times_RV = rng.multinomial(count, np.full(count, 1 / count), size=resamples)

    def means(self, videos: Sequence[str], values: Sequence[float]) -> Floats:
        """The mean of `values` in every draw that contains any of their `videos`: [<= R]."""
        places = [self.index[video] for video in videos]
        sums_V = np.bincount(places, values, minlength=len(self.index))
        counts_V = np.bincount(places, minlength=len(self.index))
        counts_R = self.times_RV @ counts_V
        with_any_R = counts_R > 0
        means: Floats = (self.times_RV @ sums_V)[with_any_R] / counts_R[with_any_R]
        return means

    def estimate(self, videos: Sequence[str], values: Sequence[float | None]) -> Estimate | None:
        """The mean of the known `values` and its interval; None if all are None."""
        known = [(name, v) for name, v in zip(videos, values, strict=True) if v is not None]
        if not known:
            return None
        names, numbers = [name for name, _ in known], [value for _, value in known]
        mean = float(np.mean(numbers))
        if len(set(names)) < LEAST_VIDEOS:
            return Estimate(mean, None, None)
        edge = (1 - LEVEL) / 2
        low, high = np.quantile(self.means(names, numbers), (edge, 1 - edge))
        return Estimate(mean, float(low), float(high))
