"""Methods that select in the encoder, by name: dense visual tokens in, the kept ones' places out.

Shape suffixes: T frames, P tokens of a frame, D features, N kept tokens.
"""

from __future__ import annotations

from torch import Tensor

from metok_vllm.baselines import evs, random, vcast, vidcom2
from metok_vllm.config.methods import ENCODER_RULES, EVS, RANDOM, VIDCOM2


def select(rule: str, x_TPD: Tensor, keep: int, seed: str) -> Tensor:
    """Indices of the `keep` of T * P tokens that a method keeps, int64 [keep], rising."""
    assert rule in ENCODER_RULES, rule
    if rule == RANDOM:
        return random.select(x_TPD, keep, seed)
    if rule == EVS:
        return evs.select(x_TPD, keep)
    return vidcom2.select(x_TPD, keep) if rule == VIDCOM2 else vcast.select(x_TPD, keep)
