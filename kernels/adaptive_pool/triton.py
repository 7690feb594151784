"""Adaptive pooling in Triton: each packed token straight from the patches it is made of.

One program makes 16 tokens of one frame, pooled at the frame's own stride alone. Each program sums
the lengths of the frames before its own to find where its tokens start: one launch is enough. The
first program of a frame also copies its separators.

Floor, N tokens of D features in b bytes: N*D*b + 8*N written; read are the patches that kept tokens
touch, at most 4 a token (bilinear) or stride^2 (means), each patch of a frame once from memory.

The sample points are those of torch's `interpolate(mode="bilinear", align_corners=False)`.
Shape suffixes: T frames of a tile, N tokens of a tile, D features of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from metok_vllm.kernels.adaptive_pool.packed import Grid, pooled_sides, sides_of
from metok_vllm.kernels.jit import jit

TOKENS, FEATURES, FRAMES = 16, 256, 128


def adaptive_pool(
    x_TPD: Tensor,
    class_T: Tensor,
    event_T: Tensor,
    newline_D: Tensor | None,
    grid: Grid,
    strides: tuple[int, int, int],
    mode: str,
    total: int,
    closes_events: bool,
    row_newline: bool,
    separator_SD: Tensor | None,
    head_T: Tensor | None,
    tail_T: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See the package."""
    T, _, D = x_TPD.shape
    x_TPD = x_TPD if x_TPD.stride(2) == 1 else x_TPD.contiguous()
    tokens_ND = x_TPD.new_empty(total, D)
    event_N = event_T.new_empty(total)
    sides = [pooled_sides(grid, stride, mode) for stride in strides]
    longest = max(height * (width + row_newline) for height, width in sides) + closes_events
    if not total:
        return tokens_ND, event_N
    event_T = event_T.contiguous()
    # The kernel reads no separators, heads and tails where there are none.
    adaptive_pool_kernel[(T, max(1, triton.cdiv(longest, TOKENS)))](
        x_TPD,
        class_T.contiguous(),
        event_T,
        x_TPD if newline_D is None else newline_D.contiguous(),
        x_TPD if separator_SD is None else separator_SD.contiguous(),
        event_T if head_T is None else head_T.contiguous(),
        event_T if tail_T is None else tail_T.contiguous(),
        tokens_ND,
        event_N,
        T,
        D,
        0 if separator_SD is None else len(separator_SD),
        total,
        x_TPD.stride(0),
        x_TPD.stride(1),
        *sides_of(grid),
        *strides,
        *(height for height, _ in sides),
        *(width for _, width in sides),
        BILINEAR=mode == "bilinear",
        CLOSES=int(closes_events),
        ROW_NEWLINE=int(row_newline),
        SEPARATORS=int(separator_SD is not None),
        TOKENS=TOKENS,
        FEATURES=min(FEATURES, triton.next_power_of_2(D)),
        FRAMES=min(FRAMES, triton.next_power_of_2(T)),
    )
    return tokens_ND, event_N


@jit
def of_class(number: tl.tensor, first: tl.tensor, second: tl.tensor, third: tl.tensor) -> tl.tensor:
    """The entry of each class; a table in memory would have to be copied to the device."""
    return tl.where(number == 0, first, tl.where(number == 1, second, third))


@jit
def sample(place: tl.tensor, side: tl.tensor, grid: tl.tensor) -> tl.tensor:
    """Lower and upper patch of each sample point in one direction, and the upper one's weight."""
    # Triton makes a constant, which has no `to`, of a number that is 1.
    scale = grid / side.to(tl.float32)
    point = tl.maximum((place.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    low = tl.minimum(point.to(tl.int32), grid - 1)
    return low, tl.minimum(low + 1, grid - 1), point - low.to(tl.float32)


@jit
def copy_separators(
    separators: tl.tensor,
    tokens: tl.tensor,
    token_events: tl.tensor,
    event: tl.tensor,
    before: tl.tensor,
    begin: tl.tensor,
    head: tl.tensor,
    tail: tl.tensor,
    pooled: tl.tensor,
    features: tl.tensor,
    rows: tl.tensor,
    total: tl.tensor,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    """The separators of one frame; `before` of them are earlier, `begin` is its first token."""
    for first in range(0, head + tail, TOKENS):
        within_N = first + tl.arange(0, TOKENS)
        row_N = before + within_N
        place_N = begin + within_N + tl.where(within_N < head, 0, pooled)
        inside_N = (within_N < head + tail) & (row_N < rows) & (place_N < total)
        tl.store(token_events + place_N, tl.broadcast_to(event, [TOKENS]), mask=inside_N)
        for d in range(0, features, FEATURES):
            column_D = d + tl.arange(0, FEATURES)
            mask_ND = inside_N[:, None] & (column_D < features)[None, :]
            separator_ND = tl.load(
                separators + row_N[:, None] * features + column_D[None, :], mask=mask_ND, other=0.0
            )
            tl.store(
                tokens + place_N[:, None] * features + column_D[None, :],
                separator_ND.to(tokens.dtype.element_ty),
                mask=mask_ND,
            )


@jit
def adaptive_pool_kernel(
    x: tl.tensor,
    classes: tl.tensor,
    events: tl.tensor,
    newline: tl.tensor,
    separators: tl.tensor,
    heads: tl.tensor,
    tails: tl.tensor,
    tokens: tl.tensor,
    token_events: tl.tensor,
    frames: tl.tensor,
    features: tl.tensor,
    separator_rows: tl.tensor,
    total: tl.tensor,
    frame_stride: tl.tensor,
    patch_stride: tl.tensor,
    grid_rows: tl.tensor,
    grid_columns: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    height0: tl.tensor,
    height1: tl.tensor,
    height2: tl.tensor,
    width0: tl.tensor,
    width1: tl.tensor,
    width2: tl.tensor,
    BILINEAR: tl.constexpr,
    CLOSES: tl.constexpr,
    ROW_NEWLINE: tl.constexpr,
    SEPARATORS: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    FRAMES: tl.constexpr,
) -> None:
    """16 tokens of one frame, with the newlines of its rows and the one that closes its event."""
    t = tl.program_id(0)
    own_class = tl.load(classes + t)
    height = of_class(own_class, height0, height1, height2)
    width = of_class(own_class, width0, width1, width2)
    stride = of_class(own_class, stride0, stride1, stride2)
    event = tl.load(events + t)
    following = tl.load(events + t + 1, mask=t + 1 < frames, other=-1)
    line = width + ROW_NEWLINE
    pooled = height * line
    count = pooled + CLOSES * (following != event).to(tl.int32)
    first = tl.program_id(1) * TOKENS
    # The first program stays for separators, of which there may be some without any feature.
    if first >= tl.maximum(count, SEPARATORS):
        return

    begin = tl.full([], 0, tl.int64)
    before = tl.full([], 0, tl.int64)
    for start in range(0, t, FRAMES):
        frame_T = start + tl.arange(0, FRAMES)
        earlier_T = frame_T < t
        class_T = tl.load(classes + frame_T, mask=earlier_T, other=0)
        height_T = of_class(class_T, height0, height1, height2)
        width_T = of_class(class_T, width0, width1, width2)
        event_T = tl.load(events + frame_T, mask=earlier_T, other=0)
        next_T = tl.load(events + frame_T + 1, mask=earlier_T, other=0)
        length_T = height_T * (width_T + ROW_NEWLINE)
        length_T += CLOSES * (next_T != event_T).to(tl.int32)
        begin += tl.sum(tl.where(earlier_T, length_T, 0))
        if SEPARATORS:
            head_T = tl.load(heads + frame_T, mask=earlier_T, other=0)
            before += tl.sum(head_T + tl.load(tails + frame_T, mask=earlier_T, other=0))

    if SEPARATORS:
        begin += before
        head, tail = tl.load(heads + t), tl.load(tails + t)
        if first == 0:
            copy_separators(
                separators,
                tokens,
                token_events,
                event,
                before,
                begin,
                head,
                tail,
                pooled,
                features,
                separator_rows,
                total,
                TOKENS,
                FEATURES,
            )
        begin += head

    within_N = first + tl.arange(0, TOKENS)
    place_N = begin + within_N
    inside_N = (within_N < count) & (place_N < total)
    # Average pooling can leave a frame no token but its newlines.
    y_N, x_N = within_N // tl.maximum(line, 1), within_N % tl.maximum(line, 1)
    patch_N = (within_N < pooled) & (x_N < width)
    tl.store(token_events + place_N, tl.broadcast_to(event, [TOKENS]), mask=inside_N)
    frame = x + t.to(tl.int64) * frame_stride
    for d in range(0, features, FEATURES):
        column_D = d + tl.arange(0, FEATURES)
        exists_D = column_D < features
        mask_ND = (inside_N & patch_N)[:, None] & exists_D[None, :]
        sum_ND = tl.zeros([TOKENS, FEATURES], tl.float32)
        if BILINEAR:
            top_N, bottom_N, down_N = sample(y_N, height, grid_rows)
            left_N, right_N, across_N = sample(x_N, width, grid_columns)
            for corner in tl.static_range(4):
                row_N, row_share_N = top_N, 1.0 - down_N
                column_N, column_share_N = left_N, 1.0 - across_N
                if corner >= 2:
                    row_N, row_share_N = bottom_N, down_N
                if corner % 2 == 1:
                    column_N, column_share_N = right_N, across_N
                offset_N = (row_N * grid_columns + column_N) * patch_stride
                patch_ND = tl.load(
                    frame + offset_N[:, None] + column_D[None, :], mask=mask_ND, other=0.0
                )
                sum_ND += patch_ND.to(tl.float32) * (row_share_N * column_share_N)[:, None]
        else:
            # A cell holds stride^2 patches, or what the frame has left at its last row and column.
            top_N, left_N = y_N * stride, x_N * stride
            for down in range(tl.minimum(stride, grid_rows)):
                for across in range(tl.minimum(stride, grid_columns)):
                    row_N, column_N = top_N + down, left_N + across
                    offset_N = (row_N * grid_columns + column_N) * patch_stride
                    exists_N = (row_N < grid_rows) & (column_N < grid_columns)
                    patch_ND = tl.load(
                        frame + offset_N[:, None] + column_D[None, :],
                        mask=mask_ND & exists_N[:, None],
                        other=0.0,
                    )
                    sum_ND += patch_ND.to(tl.float32)
            rows_N = tl.minimum(stride, grid_rows - top_N)
            columns_N = tl.minimum(stride, grid_columns - left_N)
            # Places beyond the frame's patches have no cell; their quotient is not stored.
            sum_ND = sum_ND / tl.maximum(rows_N * columns_N, 1).to(tl.float32)[:, None]
        newline_D = tl.load(newline + column_D, mask=exists_D, other=0.0).to(tl.float32)
        token_ND = tl.where(patch_N[:, None], sum_ND, newline_D[None, :])
        tl.store(
            tokens + place_N[:, None] * features + column_D[None, :],
            token_ND.to(tokens.dtype.element_ty),
            mask=inside_N[:, None] & exists_D[None, :],
        )
