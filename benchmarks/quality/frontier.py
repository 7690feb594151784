"""The settings of the frontier: METok, its stages, and other rules at equal KV bytes held."""

from __future__ import annotations

from collections.abc import Sequence

from metok_vllm.benchmarks.quality import equal_kv
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
