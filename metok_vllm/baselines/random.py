"""Random tokens: the baseline for every method.

Shape suffixes: T frames, P tokens of a frame, D features.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from metok_vllm.devices import array_on


def select(x_TPD: Tensor, keep: int, seed: str) -> Tensor:
    """Indices of `keep` of the T * P tokens, uniform without repetition, int64 [keep], rising.

    The same `seed` gives the same tokens. They are drawn on the host from the shape alone, so every
    device and tensor parallel rank draws the same, without a host sync.
    """
    tokens = x_TPD.shape[0] * x_TPD.shape[1]
    assert 1 <= keep <= tokens
    drawn = np.random.default_rng([*seed.encode()]).choice(tokens, keep, replace=False)
    return array_on(np.sort(drawn.astype(np.int64)), x_TPD.device)
