"""The settings of the frontier: METok, its stages, and other methods with equal KV cache.

The solvers count tokens summed over layers. Every layer holds the text under every method, so text
cancels. Blocks round up, so held bytes differ by less than a block for each cache group.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.questions.settings import (
    OFF,
    Setting,
    checked,
    for_server,
    pooling,
    presets,
    request_config,
    stages,
)
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import EVS, FASTV, POOL, RANDOM, VCAST, VIDCOM2
from metok_vllm.plan.prompt import Pruning

TARGETS = ("quality", "balanced", "max")
# The engine's methods that select among the dense tokens before the decoder, and their labels.
TOKEN_RULES = {RANDOM: "random", EVS: "EVS", VIDCOM2: "VidCom2", VCAST: "V-CAST"}
POOLED = (4, 8)
# FastV cannot hold less than its first layers do; these are its shares in the later layers.
FASTV_KEEPS = (0.5, 0.25, 0.1)


def frontier(
    frames: int,
    geometry: Geometry,
    base: METokConfig | None = None,
    own: bool = False,
    targets: Sequence[str] = TARGETS,
) -> list[Setting]:
    """Dense, presets, stages and rivals, for videos with `frames` sampled frames.

    `base` is the configuration of the server (None: the default). `own` adds it as a setting and a
    target. Settings that the server refuses are left out and reported on stderr.
    """
    config = METokConfig() if base is None else base
    metok = for_server(presets(targets), config, own)
    subsets = stages()[1:-1]  # all three together are the preset
    found = [*metok, *subsets, *(pooling(stride) for stride in POOLED)]
    for target in metok[1:]:
        found += reductions(target, geometry)
        held = held_tokens(request_config(config, target), frames, geometry)
        found += rivals(held, target.name, frames, geometry, config)
    found += [_fastv(f"FastV {keep:g}", keep) for keep in FASTV_KEEPS]
    return checked(for_server(found, config, own=False))


def methods(
    frames: int, geometry: Geometry, base: METokConfig | None = None, target: str = "balanced"
) -> list[Setting]:
    """Dense, one preset with every reduction, and methods of the encoder that hold as much."""
    config = METokConfig() if base is None else base
    metok = for_server(presets((target,)), config, own=False)
    held = held_tokens(request_config(config, metok[-1]), frames, geometry)
    found = [*metok, *reductions(metok[-1], geometry)]
    names = set(TOKEN_RULES.values())
    found += [s for s in rivals(held, target, frames, geometry, config) if s.line in names]
    return checked(for_server(found, config, own=False))


def rivals(
    held: int, target: str, frames: int, geometry: Geometry, base: METokConfig
) -> list[Setting]:
    """Methods that hold `held` visual tokens (summed over layers), as the setting `target` does.

    Methods that cannot hold so few are left out.
    """
    solved = solve_token_rule(held, frames, geometry)
    found = []
    for rule, name in TOKEN_RULES.items():
        # vLLM's EVS keeps at least one whole frame.
        if rule != EVS or solved.token_layers >= geometry.layers * geometry.video(1).dense_tokens():
            request = {"enabled": True, "rule": rule, "rule_keep": solved.share}
            found.append(Setting(f"{name} = {target}", name, request, equal_to=target))
    dropped = solve_frame_dropping(held, frames, geometry)
    name = "fewer frames"
    found.append(Setting(f"{name} = {target}", name, OFF, dropped.share, equal_to=target))
    fast = solve_fastv(held, frames, geometry, base.pruning_layers)
    if fast is not None:
        found.append(_fastv(f"FastV = {target}", fast.share, target))
    return found


def reductions(target: Setting, geometry: Geometry) -> list[Setting]:
    """METok's setting with each other way to make a frame coarser that the model has."""
    return [
        Setting(
            f"{target.name}, {name}",
            f"METok, {name}",
            {**(target.request or {}), "reduce": name},
            equal_to=target.name,
        )
        for name in geometry.video(1).reductions
        if name != POOL
    ]


def _fastv(name: str, keep: float, target: str | None = None) -> Setting:
    request = {"enabled": True, "rule": FASTV, "rule_keep": keep}
    return Setting(name, "FastV", request, equal_to=target)


@dataclass(frozen=True)
class Solved:
    """The share that a method must keep, and the visual tokens it then holds over all layers."""

    share: float
    token_layers: int


def held_tokens(config: METokConfig, frames: int, geometry: Geometry) -> int:
    """Visual tokens that a request holds for decoding, summed over layers."""
    video = geometry.video(frames)
    tokens = video.tokens(config)
    if not config.compresses:
        return geometry.layers * tokens
    pruning = Pruning.of_video(config, video)
    sizes = geometry.layout(config.pruning_layers).stage_sizes
    return sum(size * n for size, n in zip(sizes, pruning.counts(tokens).decode, strict=True))


def solve_token_rule(target: int, frames: int, geometry: Geometry) -> Solved:
    """`rule_keep` of a method that keeps some dense features, and separators and the last newline,
    in all layers."""
    video = geometry.video(frames)
    of = video.frames * video.frame_features(video.dense_stride)
    always = video.separators + video.closes_events
    kept = min(max(_nearest(target, geometry.layers) - always, 1), of)
    return Solved(_share(kept, of), geometry.layers * (kept + always))


def solve_fastv(
    target: int, frames: int, geometry: Geometry, boundaries: tuple[int, int, int] | None
) -> Solved | None:
    """`rule_keep` of FastV, which holds the dense input in all layers before the first boundary.

    None if those layers, and the separators of all others, exceed the target.
    """
    video = geometry.video(frames)
    whole, always = video.dense_tokens(), video.separators
    first = geometry.layout(boundaries).boundaries[0]
    deeper = geometry.layers - first
    kept = _nearest(target - first * whole, deeper) - always
    if kept < 1:
        return None
    kept = min(kept, whole - always)
    share = _share(kept, whole - always)
    return Solved(share, first * whole + deeper * (kept + always))


def solve_frame_dropping(target: int, frames: int, geometry: Geometry) -> Solved:
    """The share of the frames whose dense input is nearest to the target.

    Frames of the layout are counted, which may be several sampled ones each.
    """
    most = geometry.video(frames).frames
    sampled = [round(frames * kept / most) for kept in range(most + 1)]

    def held(kept: int) -> int:
        return geometry.layers * geometry.video(sampled[kept]).dense_tokens()

    above = min(1 + bisect_left(range(1, most + 1), target, key=held), most)
    kept = above if above == 1 or 2 * target >= held(above - 1) + held(above) else above - 1
    return Solved(kept / most, held(kept))


def _nearest(total: int, each: int) -> int:
    return (2 * total + each) // (2 * each)


def _share(kept: int, of: int) -> float:
    """A share for which the engine's `ceil(share * of)` is `kept` despite rounding."""
    return 1.0 if kept == of else (kept - 0.25) / of
