"""Methods that select in the encoder, by name: dense visual tokens in, kept tokens out.

Shape suffixes: T frames, P tokens of a frame, D features, N kept tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metok_vllm.baselines import evs, random, vidcom2
from metok_vllm.config.methods import ENCODER_RULES, EVS, RANDOM


def compress(rule: str, x_TPD: Tensor, newline_D: Tensor | None, keep: int, seed: str) -> Tensor:
    """Visual tokens [keep, D] in order of time, and the newline if the model closes its videos.

    `x_TPD` is the model's dense input of a video. `seed` is the video's key, for `random` alone.
    """
    rows_ND = x_TPD.flatten(0, 1).index_select(0, select(rule, x_TPD, keep, seed))
    assert rows_ND.shape[0] == keep, (rule, keep, tuple(x_TPD.shape))
    return rows_ND if newline_D is None else torch.cat([rows_ND, newline_D[None]])


def select(rule: str, x_TPD: Tensor, keep: int, seed: str) -> Tensor:
    """Indices of the `keep` of T * P tokens that a method keeps, int64 [keep], rising."""
    assert rule in ENCODER_RULES, rule
    if rule == RANDOM:
        return random.select(x_TPD, keep, seed)
    return evs.select(x_TPD, keep) if rule == EVS else vidcom2.select(x_TPD, keep)
