"""Event top-k in Triton: one program an event, one launch for all events of all requests.

A program finds the score threshold of its event bit by bit: 32 counts over scores that stay in L1.
It then scans the event once more and writes the kept tokens in order. There is no sort, no atomic,
and nothing is read back.

Floor: every score read once, 8 bytes written for each kept token. In practice the latency of the 34
scans dominates, because events are small. A probing search finds where an event begins.
Shape suffixes: N tokens of a tile, B probes, E events.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from metok_vllm.kernels.jit import jit

TILE = 2048
WARPS = 8


def event_topk(score_N: Tensor, event_N: Tensor, count_E: Tensor, total: int) -> Tensor:
    """See the package."""
    # Zeros, not empty: counts that do not add up must not make indices out of range.
    kept = torch.zeros(total, dtype=torch.int64, device=score_N.device)
    events = count_E.shape[0]
    if total and events:
        event_topk_kernel[(events,)](
            score_N.contiguous(),
            event_N.contiguous(),
            count_E.contiguous(),
            kept,
            score_N.shape[0],
            total,
            TILE=TILE,
            num_warps=WARPS,
        )
    return kept


@jit
def first_not_below(
    event: tl.tensor, tokens: tl.tensor, target: tl.tensor, PROBES: tl.constexpr
) -> tl.tensor:
    """First token whose event is at least `target`: a search with `PROBES` probes a step."""
    low = tl.full([], 0, tl.int64)
    length = tl.cast(tokens, tl.int64)
    while length > 0:
        step = (length + PROBES - 1) // PROBES
        probe_B = tl.arange(0, PROBES) * step
        inside_B = probe_B < length
        value_B = tl.load(event + low + probe_B, mask=inside_B, other=0)
        below = tl.sum((inside_B & (value_B < target)).to(tl.int64))
        # The answer lies behind the last probe below the target, before the next one.
        start = tl.maximum(below - 1, 0) * step + tl.minimum(below, 1)
        length = tl.where(below > 0, tl.minimum(step - 1, length - start), 0)
        low += start
    return low


@jit
def ordered_bits(score: tl.tensor, offset: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Scores as unsigned integers in the same order; -0.0 as 0.0."""
    value = tl.load(score + offset, mask=mask, other=0.0).to(tl.float32)
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    # Negative numbers order backwards: flip all their bits, and only the sign of the others.
    return (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)


@jit
def event_topk_kernel(
    score: tl.tensor,
    event: tl.tensor,
    count: tl.tensor,
    kept: tl.tensor,
    tokens: tl.tensor,
    total: tl.tensor,
    TILE: tl.constexpr,
) -> None:
    """The best `count[e]` tokens of event e, behind those of the events before it."""
    e = tl.program_id(0)
    wanted = tl.load(count + e)
    if wanted <= 0:
        return
    first = first_not_below(event, tokens, e, TILE)
    end = first_not_below(event, tokens, e + 1, TILE)
    lane_N = tl.arange(0, TILE)

    before = tl.full([], 0, tl.int64)
    for block in range(0, e, TILE):
        earlier_N = block + lane_N
        before += tl.sum(tl.load(count + earlier_N, mask=earlier_N < e, other=0))

    # The largest threshold that at least `wanted` scores reach.
    threshold = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << 31, tl.uint32)
    for _ in range(32):
        candidate = threshold | bit
        reached = tl.full([], 0, tl.int64)
        for start in range(first, end, TILE):
            inside_N = start + lane_N < end
            bits_N = ordered_bits(score, start + lane_N, inside_N)
            reached += tl.sum((inside_N & (bits_N >= candidate)).to(tl.int32))
        threshold = tl.where(reached >= wanted, candidate, threshold)
        bit = bit >> 1

    above = tl.full([], 0, tl.int64)
    for start in range(first, end, TILE):
        inside_N = start + lane_N < end
        bits_N = ordered_bits(score, start + lane_N, inside_N)
        above += tl.sum((inside_N & (bits_N > threshold)).to(tl.int32))

    ties_left = wanted - above
    for start in range(first, end, TILE):
        inside_N = start + lane_N < end
        bits_N = ordered_bits(score, start + lane_N, inside_N)
        tie_N = (inside_N & (bits_N == threshold)).to(tl.int32)
        keep_N = inside_N & (bits_N > threshold)
        keep_N = keep_N | ((tie_N == 1) & (tl.cumsum(tie_N, 0) <= ties_left))
        place_N = before + tl.cumsum(keep_N.to(tl.int32), 0) - 1
        tl.store(kept + place_N, start + lane_N, mask=keep_N & (place_N < total))
        before += tl.sum(keep_N.to(tl.int32))
        ties_left -= tl.sum(tie_N)
