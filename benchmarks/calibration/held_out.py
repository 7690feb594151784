"""What was chosen, on videos that had no part in choosing it.

The least of many noisy figures is too low: the search prefers settings that its own videos happen
to like. A video that it did not see has no such preference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.calibration.measure import DENSE, STAGE1, Measured, Meter
from metok_vllm.benchmarks.calibration.setting import Setting


@dataclass(frozen=True)
class HeldOut:
    """Settings by the names of their budgets, measured on `prompts` about `videos` held out.

    `choices` are those of each budget, `beside` those with the boundaries that are served.
    """

    videos: int
    prompts: int
    choices: Mapping[str, Measured]
    beside: Mapping[str, Measured]

    def over(self, budgets: Mapping[str, float]) -> list[str]:
        """A sentence for each setting that goes over its budget here."""
        said = []
        for name, found in self.choices.items():
            if found.worst > budgets[name]:
                said.append(_sentence(name, found, budgets[name]))
        for name, found in self.beside.items():
            is_choice = name in self.choices and self.choices[name].setting == found.setting
            if found.worst > budgets[name] and not is_choice:
                said.append(
                    _sentence(f"{name} with the layers that are served", found, budgets[name])
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: how much was held out. The figures stand with the settings."""
        return {"videos": self.videos, "prompts": self.prompts}


def measure_held_out(
    meter: Meter,
    videos: int,
    choices: Mapping[str, tuple[Setting, Sequence[int]]],
    beside: Mapping[str, Measured],
) -> HeldOut:
    """The settings chosen, with the stages they are served with, on the samples of `meter`."""
    what = "held-out videos"
    return HeldOut(
        videos,
        len(meter.samples),
        {
            name: meter.measured(setting, stages, what)
            for name, (setting, stages) in choices.items()
        },
        {
            name: meter.measured(found.setting, DENSE if found.behind is None else STAGE1, what)
            for name, found in beside.items()
        },
    )


def _sentence(name: str, found: Measured, budget: float) -> str:
    return (
        f"{name}: {found.worst:.3g} nats on the held-out videos, over the budget of {budget:g}. "
        "Search more videos (--num-videos), or ask for less than you need (--divergence)"
    )
