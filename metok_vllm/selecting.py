"""Tokens on the grid: which of a frame's tokens stay at their own places.

The score is V-CAST's, arXiv 2603.27650. Nothing is merged and no question is read.

Shape suffixes: T frames, P tokens of a frame, K kept tokens of a frame, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

# Norms of a frame that differ by less than this share of the largest are equal: a normalised
# frame's last bits must not decide.
EQUAL_NORMS = 1e-4
SCORE_DECIMALS = 5


def token_scores(x_TPD: Tensor) -> tuple[Tensor, Tensor]:
    """Score of each token, float32 [T, P], and the mean of each frame's unit tokens [T, D].

    A score is 1 - cos(token, its frame's mean) plus the token's norm, scaled to [0, 1] within the
    frame: 0 at the smallest, 1 at the largest, 0 for all where the norms are equal. It has
    SCORE_DECIMALS decimals, so that ties do not depend on the last bits of a sum. A token of zeros
    is like nothing: its cosine is 0.
    """
    x_TPD = x_TPD.float()
    norm_TP = x_TPD.norm(dim=-1)
    unit_TPD = F.normalize(x_TPD, dim=-1)
    frame_TD = unit_TPD.mean(dim=1)
    like_TP = (unit_TPD * F.normalize(frame_TD, dim=-1)[:, None]).sum(dim=-1)
    least_T1, most_T1 = norm_TP.aminmax(dim=1, keepdim=True)
    span_T1 = most_T1 - least_T1
    alike_T1 = span_T1 <= EQUAL_NORMS * most_T1
    size_TP = (norm_TP - least_T1) / span_T1.masked_fill(alike_T1, 1.0)
    score_TP = 1 - like_TP + size_TP.masked_fill(alike_T1, 0.0)
    return score_TP.round(decimals=SCORE_DECIMALS), frame_TD


def best_of_frames(
    x_TPD: Tensor, counts: Sequence[int], width: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each count K, the K best tokens of every frame (ties: the earlier): their places in the
    frame, int64 [T, K], rising, and the tokens [T, K, D]. All P of them are `x_TPD` itself.
    The first `width` features decide; None: all.
    """
    T, P, D = x_TPD.shape
    assert all(0 <= count <= P for count in counts), (counts, P)
    ranked_TP = token_scores(x_TPD[..., :width])[0].argsort(dim=1, descending=True, stable=True)
    found = []
    for count in counts:
        place_TK = ranked_TP[:, :count].sort(dim=1).values
        if count == P:
            found.append((place_TK, x_TPD))
        else:
            found.append((place_TK, x_TPD.gather(1, place_TK[..., None].expand(T, count, D))))
    return found
