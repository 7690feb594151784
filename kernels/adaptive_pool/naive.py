"""Ground truth for adaptive pooling: one frame at a time, Python loops, any float type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor,
    grid: int,
    strides: tuple[int, int, int],
    mode: str = "bilinear",
) -> tuple[Tensor, Tensor]:
    """Packed tokens [N, D] and the event of each token [N]. See the package for the contract."""
    tokens: list[Tensor] = []
    events: list[int] = []
    T = x_TPD.shape[0]
    for t in range(T):
        stride = strides[int(class_T[t])]
        frame = x_TPD[t].reshape(grid, grid, -1).permute(2, 0, 1)[None]
        if mode == "bilinear":
            side = -(-grid // stride)
            pooled = F.interpolate(frame, size=(side, side), mode="bilinear")
        else:
            pooled = F.avg_pool2d(frame, stride) if stride <= grid else frame[:, :, :0, :0]
        for row in pooled[0].flatten(1).T:
            tokens.append(row)
            events.append(int(event_T[t]))
        if t == T - 1 or event_T[t + 1] != event_T[t]:
            tokens.append(newline_D)
            events.append(int(event_T[t]))
    return torch.stack(tokens), torch.tensor(events)
