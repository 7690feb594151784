"""Ground truth for adaptive pooling: one frame at a time, Python loops, any float type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor | None,
    grid: int | tuple[int, int],
    strides: tuple[int, int, int],
    mode: str = "bilinear",
    *,
    closes_events: bool = True,
    row_newline: bool = False,
    separator_SD: Tensor | None = None,
    head_T: Tensor | None = None,
    tail_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Packed tokens [N, D] and the event of each token [N]. See the package for the contract."""
    tokens: list[Tensor] = []
    events: list[int] = []
    T, _, D = x_TPD.shape
    separators = iter(x_TPD.new_empty(0, D) if separator_SD is None else separator_SD)
    height, width = (grid, grid) if isinstance(grid, int) else grid
    for t in range(T):
        stride = strides[int(class_T[t])]
        frame = x_TPD[t].reshape(height, width, -1).permute(2, 0, 1)[None]
        if mode == "bilinear":
            size = (-(-height // stride), -(-width // stride))
            pooled = F.interpolate(frame, size=size, mode="bilinear")
        elif mode == "area":
            pooled = area(frame[0], stride)[None]
        elif stride > min(height, width):
            pooled = frame[:, :, : height // stride, : width // stride]
        else:
            pooled = F.avg_pool2d(frame, stride)
        of_frame = [next(separators) for _ in range(0 if head_T is None else int(head_T[t]))]
        for y in range(pooled.shape[2]):
            of_frame += [pooled[0, :, y, x] for x in range(pooled.shape[3])]
            if row_newline:
                assert newline_D is not None
                of_frame.append(newline_D)
        of_frame += [next(separators) for _ in range(0 if tail_T is None else int(tail_T[t]))]
        if closes_events and (t == T - 1 or event_T[t + 1] != event_T[t]):
            assert newline_D is not None
            of_frame.append(newline_D)
        tokens += of_frame
        events += [int(event_T[t])] * len(of_frame)
    packed_ND = torch.stack(tokens) if tokens else x_TPD.new_empty(0, D)
    return packed_ND, torch.tensor(events, dtype=torch.int64)


def area(frame_DHW: Tensor, stride: int) -> Tensor:
    """Means of stride x stride cells; the last ones have what the frame has left."""
    _, height, width = frame_DHW.shape
    rows = []
    for y in range(0, height, stride):
        cells = [frame_DHW[:, y : y + stride, x : x + stride] for x in range(0, width, stride)]
        rows.append(torch.stack([cell.mean((1, 2)) for cell in cells], dim=1))
    return torch.stack(rows, dim=1)
