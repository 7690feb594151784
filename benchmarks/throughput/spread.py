"""Mean and percentiles of a distribution."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of a distribution; None without observations."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Percentiles are interpolated linearly, as in `vllm bench serve`."""
        array = np.fromiter(values, dtype=float)
        if not array.size:
            return cls(0, None, None, None, None)
        p50, p90, p99 = (float(p) for p in np.percentile(array, [50, 90, 99]))
        return cls(array.size, float(array.mean()), p50, p90, p99)
