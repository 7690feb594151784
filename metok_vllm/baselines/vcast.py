"""V-CAST: frames where the video turns keep more, and of each the tokens that stand out.

arXiv 2603.27650, from the paper's formulas. It looks at no question and merges nothing. What the
formulas leave open (rounding, full frames, fewer tokens than frames) is decided here.

Shape suffixes: T frames, P tokens of a frame, D features, N = T * P tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metok_vllm.apportion import share_out
from metok_vllm.kernels.event_topk import event_topk
from metok_vllm.selecting import token_scores

TEMPERATURE = 0.7  # of the softmax over frames
# A step between frame means that is shorter than this is none: it is rounding, without direction.
STILL = 1e-3
# Curvatures and shares become whole numbers, so that ties and remainders are exact everywhere.
CURVATURE_UNITS = 10_000
# Frames scored at once: scoring holds their tokens in float32 three times.
SCORED_FRAMES = 32
WHOLE = 1 << 20


def select(x_TPD: Tensor, keep: int) -> Tensor:
    """Indices of `keep` of the T * P tokens, int64 [keep], rising: of each frame as many as its
    budget says, those with the highest scores (ties: the earlier)."""
    T, P, _ = x_TPD.shape
    assert 1 <= keep <= T * P
    parts = [token_scores(part_TPD) for part_TPD in x_TPD.split(SCORED_FRAMES)]
    score_TP, frame_TD = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    count_T = budgets(curvature(frame_TD), P, keep)
    frame_N = torch.arange(T, device=x_TPD.device).repeat_interleave(P)
    return event_topk(score_TP.flatten(), frame_N, count_T, keep)


def curvature(frame_TD: Tensor) -> Tensor:
    """1 - cos of the steps to and from each frame, in ten-thousandths, int64 [T].

    1 at both ends of the video, and where a frame equals one beside it.
    """
    step_TD = frame_TD.diff(dim=0)
    moves_T1 = step_TD.norm(dim=-1, keepdim=True) >= STILL
    direction_TD = F.normalize(step_TD, dim=-1) * moves_T1
    turn_T = frame_TD.new_ones(frame_TD.shape[0])
    turn_T[1:-1] -= (direction_TD[:-1] * direction_TD[1:]).sum(dim=-1)
    return (turn_T * CURVATURE_UNITS).round().long()


def budgets(curvature_T: Tensor, P: int, keep: int) -> Tensor:
    """Tokens that each frame keeps, int64 [T], `keep` in all and none above P.

    One token each; the others in proportion to softmax(c / 0.7). A frame that would get more than P
    is full, and what it cannot take is shared out over the frames with room in the same proportion,
    until none is above P. Largest remainders (ties: the earlier frame) make the total exact. Fewer
    tokens than frames go to the frames of highest c (ties: the earlier).
    """
    T = curvature_T.shape[0]
    if keep < T:
        first_T = torch.argsort(curvature_T, descending=True, stable=True)[:keep]
        return torch.zeros_like(curvature_T).index_fill(0, first_T, 1)
    rest, room = keep - T, P - 1
    above_T = (curvature_T - curvature_T.max()).double() / (CURVATURE_UNITS * TEMPERATURE)
    weight_T = (above_T.exp() * WHOLE).round().long()
    # From the heaviest frame down: full if its share of what those before it leave exceeds its
    # room. Shares shrink along the order, so the full frames come first.
    falling_T, order_T = torch.sort(weight_T, descending=True, stable=True)
    remaining_T = falling_T.flip(0).cumsum(0).flip(0)
    before_T = torch.arange(T, device=curvature_T.device)
    is_full_T = (rest - before_T * room) * falling_T > room * remaining_T
    full_T = torch.zeros_like(is_full_T).index_put((order_T,), is_full_T)
    room_T = torch.full_like(weight_T, room).masked_fill(full_T, 0)
    shared_T = share_out(rest - room * full_T.sum(), room_T, weight_T, curvature_T)
    return 1 + shared_T + room * full_T
