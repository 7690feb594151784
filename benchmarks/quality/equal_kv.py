"""What other rules have to keep so that they hold as much KV cache for decoding as METok does.

Counted in tokens summed over layers. Text is held by every layer under every rule and cancels.
Blocks round the tokens of every cache group up, so bytes as held differ by less than a block each.
"""

from __future__ import annotations

from dataclasses import dataclass

from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.config import METokConfig
from metok_vllm.plan.prompt import Pruning, key_share
from metok_vllm.plan.request import video_tokens
from metok_vllm.plan.tokens import dense_tokens

NEWLINE = 1  # closes the dense input, and that of a rule that works on its tokens


@dataclass(frozen=True)
class Solved:
    """The setting of a rule, and the visual tokens that it holds, summed over layers."""

    share: float
    token_layers: int


def held(config: METokConfig, frames: int, geometry: Geometry) -> int:
    """Visual tokens that a request holds for decoding, summed over layers."""
    tokens = video_tokens(frames, geometry.grid, config)
    if not config.compresses:
        return geometry.layers * tokens
    wishes = Pruning.of(config, key_share(frames, geometry.grid, config))
    sizes = geometry.layout(config.pruning_layers).stage_sizes
    return sum(size * n for size, n in zip(sizes, wishes.counts(tokens).decode, strict=True))


def token_rule(target: int, frames: int, geometry: Geometry) -> Solved:
    """`rule_keep` of a rule that keeps some of the dense tokens, and the newline, in all layers."""
    of = dense_tokens(frames, geometry.grid) - NEWLINE
    kept = min(max(_nearest(target, geometry.layers) - NEWLINE, 1), of)
    return Solved(_share(kept, of), geometry.layers * (kept + NEWLINE))


def fastv(
    target: int, frames: int, geometry: Geometry, boundaries: tuple[int, int, int] | None
) -> Solved | None:
    """`rule_keep` of FastV, which holds the whole dense input below the first pruning layer.

    None where those layers alone hold more than the target.
    """
    whole = dense_tokens(frames, geometry.grid)
    first = geometry.layout(boundaries).boundaries[0]
    deeper = geometry.layers - first
    kept = _nearest(target - first * whole, deeper)
    if kept < 1:
        return None
    kept = min(kept, whole)
    return Solved(_share(kept, whole), first * whole + deeper * kept)


def frame_dropping(target: int, frames: int, geometry: Geometry) -> Solved:
    """The share of the frames whose dense input holds as much, to the nearest frame."""
    of_frame = dense_tokens(1, geometry.grid) - NEWLINE
    wanted = target - NEWLINE * geometry.layers
    kept = min(max(_nearest(wanted, geometry.layers * of_frame), 1), frames)
    return Solved(kept / frames, geometry.layers * dense_tokens(kept, geometry.grid))


def _nearest(total: int, each: int) -> int:
    return (2 * total + each) // (2 * each)


def _share(kept: int, of: int) -> float:
    """A share of which the engine's `ceil(share * of)` makes just `kept`, whatever is rounded."""
    return 1.0 if kept == of else (kept - 0.25) / of
