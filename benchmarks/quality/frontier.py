"""The settings of the frontier: METok, its stages, and other rules at equal KV bytes held."""

from __future__ import annotations

from collections.abc import Sequence

from metok_vllm.benchmarks.quality import equal_kv
from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.settings import (
    Setting,
    checked,
    pooling,
    presets,
    request_config,
    stages,
)
from metok_vllm.config import METokConfig
from metok_vllm.rules import EVS, FASTV, RANDOM, VIDCOM2

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
    targets: Sequence[str] = TARGETS,
) -> list[Setting]:
    """Dense, presets, stages and rivals, for videos of which `frames` are looked at.

    `base` is the configuration of the server, if not the default one: it comes as a setting of its
    own and a target, too.
    """
    known = METokConfig() if base is None else base
    own = [] if base is None else [Setting("as served", "METok")]
    metok = [*presets(targets), *own]
    subsets = stages()[1:-1]  # all three together are the preset
    found = [*metok, *subsets, *(pooling(stride) for stride in POOLED)]
    for target in metok[1:]:
        held = equal_kv.held(request_config(known, target), frames, geometry)
        found += rivals(held, target.name, frames, geometry, known)
    found += [_fastv(f"FastV {keep:g}", keep) for keep in FASTV_KEEPS]
    return checked(found)


def rivals(
    held: int, target: str, frames: int, geometry: Geometry, base: METokConfig
) -> list[Setting]:
    """Rules that hold as many visual tokens (summed over layers) as the setting called `target`."""
    solved = equal_kv.token_rule(held, frames, geometry)
    found = [
        Setting(f"{name} = {target}", name, {"rule": rule, "rule_keep": solved.share})
        for rule, name in TOKEN_RULES.items()
    ]
    dropped = equal_kv.frame_dropping(held, frames, geometry)
    found.append(
        Setting(f"fewer frames = {target}", "fewer frames", {"enabled": False}, dropped.share)
    )
    fast = equal_kv.fastv(held, frames, geometry, base.pruning_layers)
    if fast is not None:
        found.append(_fastv(f"FastV = {target}", fast.share))
    return found


def _fastv(name: str, keep: float) -> Setting:
    return Setting(name, "FastV", {"rule": FASTV, "rule_keep": keep})
