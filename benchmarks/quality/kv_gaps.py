"""Checks that settings with equal KV cache do hold equally many tokens.

A rival's share is solved once for a number of frames, so every video must have that many. The
server must prune at the assumed layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metok_vllm.benchmarks.quality.geometry import Geometry
from metok_vllm.benchmarks.quality.harness import Answered, Cell
from metok_vllm.benchmarks.quality.rows import Row
from metok_vllm.benchmarks.questions.prompts import ALL, frames_in
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError

LARGEST_GAP = 0.02  # a larger share of the target's tokens counts as unequal
STAGED = {2, 3}  # the stages that divide the decoder's layers


@dataclass(frozen=True)
class Gap:
    """The share by which a setting held more tokens (text included) than its target."""

    frames: int
    setting: str
    target: str
    gap: float

    def __str__(self) -> str:
        more = "more" if self.gap >= 0 else "fewer"
        return (
            f"{self.frames} frames, {self.setting}: held {100 * abs(self.gap):.1f} % {more} tokens "
            f"than {self.target}"
        )


def check_lengths(cell: Cell) -> None:
    """Raises ConfigError if a setting at equal KV has a video with too few frames."""
    if not any(setting.equal_to for setting in cell.settings):
        return
    for question in cell.questions:
        if (frames := frames_in(question.video)) < cell.frames:
            raise ConfigError(
                f"{question.name} has {frames} frames and --frames is {cell.frames}: settings at "
                "equal KV are solved for one number of frames, which every video must have",
                "frames",
            )


def check_layers(answers: Iterable[Answered], config: METokConfig, geometry: Geometry) -> None:
    """Raises ConfigError if a server does not prune at the layers of `config`."""
    wanted = None
    if STAGED & set(config.stages):
        wanted = geometry.layout(config.pruning_layers).boundaries
    for answer in answers:
        if answer.error is None and answer.pruning_layers != wanted:
            found = answer.pruning_layers
            raise ConfigError(
                f"the server prunes at layers {_shown(found)}, and equal KV was solved for "
                f"{_shown(wanted)}: give --metok-config with the server's own settings",
                "pruning_layers",
            )


def gaps(found: Iterable[Row], cells: Iterable[Cell]) -> list[Gap]:
    """The gap of every setting at equal KV, where both token counts are known."""
    held = {(r.frames, r.setting): r.kv_tokens for r in found if r.kind == ALL}
    made = []
    for cell in cells:
        for setting in cell.settings:
            if setting.equal_to is None:
                continue
            mine, target = (held.get((cell.frames, n)) for n in (setting.name, setting.equal_to))
            if mine and target:
                made.append(Gap(cell.frames, setting.name, setting.equal_to, mine / target - 1))
    return made


def largest(found: Sequence[Gap]) -> Gap | None:
    """The gap with the largest absolute value; None without gaps."""
    return max(found, key=lambda gap: abs(gap.gap), default=None)


def _shown(layers: Sequence[int] | None) -> str:
    return "none" if layers is None else str(list(layers))
