"""The settings of the frontier: METok, its stages, and other rules at equal KV bytes held."""
# MERGED DOC
# """What other rules have to keep so that they hold as much KV cache for decoding as METok does.
#
# Counted in tokens summed over layers. Text is held by every layer under every rule and cancels.
# Blocks round the tokens of every cache group up, so bytes as held differ by less than a block each.
# """

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.quality import frontier as equal_kv
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
from metok_vllm.config.methods import EVS, FASTV, RANDOM, VIDCOM2
from metok_vllm.plan.prompt import Pruning, key_share
from metok_vllm.plan.request import video_tokens
from metok_vllm.plan.tokens import dense_tokens

TARGETS = ("quality", "balanced", "max")
# Rules that choose among the dense tokens before the decoder, as the engine names them.
TOKEN_RULES = {RANDOM: "random", EVS: "EVS", VIDCOM2: "VidCom2"}
POOLED = (4, 8)
# FastV cannot hold less than its first layers do; these shares show what it does above that.
FASTV_KEEPS = (0.5, 0.25, 0.1)


def frontier(
    frames: int,
    geometry: Geometry,
    base: METokConfig | None = None,
    own: bool = False,
    targets: Sequence[str] = TARGETS,
) -> list[Setting]:
    """Dense, presets, stages and rivals, for videos of which `frames` are looked at.

    `base` is the configuration of the server (None: the default); it comes as a setting and a
    target too where it is somebody's `own`. What the server would refuse is left out, on stderr.
    """
    known = METokConfig() if base is None else base
    metok = for_server(presets(targets), known, own)
    subsets = stages()[1:-1]  # all three together are the preset
    found = [*metok, *subsets, *(pooling(stride) for stride in POOLED)]
    for target in metok[1:]:
        held = equal_kv.held(request_config(known, target), frames, geometry)
        found += rivals(held, target.name, frames, geometry, known)
    found += [_fastv(f"FastV {keep:g}", keep) for keep in FASTV_KEEPS]
    return checked(for_server(found, known, own=False))


def rivals(
    held: int, target: str, frames: int, geometry: Geometry, base: METokConfig
) -> list[Setting]:
    """Rules that hold as many visual tokens (summed over layers) as the setting called `target`.

    Those that cannot hold so little are left out.
    """
    solved = equal_kv.token_rule(held, frames, geometry)
    found = []
    for rule, name in TOKEN_RULES.items():
        # vLLM's EVS keeps a whole frame at least, so less than that would be another rule.
        if rule != EVS or solved.token_layers >= geometry.layers * dense_tokens(1, geometry.grid):
            request = {"enabled": True, "rule": rule, "rule_keep": solved.share}
            found.append(Setting(f"{name} = {target}", name, request, equal_to=target))
    dropped = equal_kv.frame_dropping(held, frames, geometry)
    name = "fewer frames"
    found.append(Setting(f"{name} = {target}", name, OFF, dropped.share, equal_to=target))
    fast = equal_kv.fastv(held, frames, geometry, base.pruning_layers)
    if fast is not None:
        found.append(_fastv(f"FastV = {target}", fast.share, target))
    return found


def _fastv(name: str, keep: float, target: str | None = None) -> Setting:
    request = {"enabled": True, "rule": FASTV, "rule_keep": keep}
    return Setting(name, "FastV", request, equal_to=target)


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
