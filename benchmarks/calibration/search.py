"""The cheapest setting whose measured divergence is within a budget.

The curves only say in which order to try: what each boundary does alone is added up, and of the
settings whose sum is at most some multiple of the budget the cheapest ones are measured, whole.
The multiple falls until one of them holds. What is chosen was measured; that nothing cheaper
would hold is not proven, because not every setting is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.calibration.costs import Costs, StageCosts, costs, possible_layouts
from metok_vllm.benchmarks.calibration.curves import Curves
from metok_vllm.benchmarks.calibration.kl_to_dense import Divergence
from metok_vllm.benchmarks.calibration.measure import DENSE, STAGE1, Meter
from metok_vllm.benchmarks.calibration.setting import Setting, plan_of
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import PromptPlan

# Multiples of the budget, falling; at each so many of the cheapest settings are measured.
LADDER = (8.0, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06)
A_RUNG = 4


@dataclass(frozen=True)
class Candidate:
    """Boundaries and a keep ratio, what they cost, and what the curves expect of them."""

    layout: StageLayout
    keep_ratio: float
    flops: float
    predicted: float

    def setting(self, decode_keep: float) -> Setting:
        """All of METok's stages 2 and 3 with these."""
        return Setting(self.layout.boundaries, self.keep_ratio, decode_keep)


@dataclass(frozen=True)
class Choice:
    """What was chosen for one budget, with what it does and costs.

    `parts` are divergences as the parts of METok are switched on one after another: the drop from
    p2 on, selection at p1, selection at p0, decoding on what is kept. The last is the whole.
    `with_stage1` is the same setting behind stage 1, None where it was not asked for.
    """

    setting: Setting
    layout: StageLayout
    costs: Costs
    parts: dict[str, Divergence]
    with_stage1: tuple[Divergence, Costs] | None

    @property
    def divergence(self) -> Divergence:
        """That of the whole setting."""
        return list(self.parts.values())[-1]

    def stages(self, budget: float) -> list[int]:
        """Stages to serve it with: 1 only where its measure is within the budget, too."""
        behind = self.with_stage1
        within = behind is not None and behind[0].worst <= budget
        return [1, 2, 3] if within else [2, 3]


class Search:
    """Candidates of one calibration; `find` may be called for several budgets."""

    def __init__(
        self,
        meter: Meter,
        curves: Curves,
        keep_ratios: Sequence[float],
        decode_keeps: Sequence[float],
        most_groups: int,
    ) -> None:
        self.meter = meter
        self.curves = curves
        self.decode_keeps = sorted(decode_keeps)
        decoder = meter.model.decoder
        layouts = possible_layouts(decoder.num_layers, 0, most_groups)
        self.candidates = []
        for ratio in keep_ratios:
            plans = self.plans(Setting((1, 2, 3), ratio, 0.0))
            of_stage = StageCosts(meter.model.text_config, plans)
            for layout in layouts:
                predicted = curves.predicted(layout.boundaries, ratio)
                self.candidates.append(Candidate(layout, ratio, of_stage.flops(layout), predicted))
        self.candidates.sort(key=lambda c: (c.flops, c.layout.num_groups, c.predicted))

    def find(self, budget: float, with_stage1: bool) -> Choice | None:
        """The cheapest setting that was seen to hold, or None if none of those tried does."""
        tried: set[Candidate] = set()
        least_p2 = self.curves.least_layer(budget)
        if least_p2 is None:
            return None
        able = [c for c in self.candidates if c.layout.boundaries[2] >= least_p2]
        for multiple in LADDER:
            rung = [c for c in able if c.predicted <= multiple * budget and c not in tried]
            if (found := self._best(rung[:A_RUNG], budget)) is not None:
                return self._choice(*found, with_stage1)
            tried.update(rung[:A_RUNG])
        gentlest = sorted((c for c in able if c not in tried), key=lambda c: (c.predicted, c.flops))
        found = self._best(gentlest[:A_RUNG], budget)
        return None if found is None else self._choice(*found, with_stage1)

    def find_at(self, layout: StageLayout, budget: float, stages: Sequence[int]) -> Setting | None:
        """The cheapest setting with the boundaries that are already laid out, or None.

        Where stage 1 is among the server's `stages` it holds with stage 1 and without.
        """
        fixed = [c for c in self.candidates if c.layout == layout]
        found = self._best(fixed, budget, (DENSE, STAGE1) if 1 in stages else (DENSE,))
        return None if found is None else found[0]

    def plans(self, setting: Setting, stages: tuple[int, ...] = DENSE) -> list[PromptPlan]:
        """The engine's plans for all prompts."""
        model = self.meter.model
        prompts = [sample.prompt(stages) for sample in self.meter.samples]
        return [plan_of(setting, prompt, model.grid, model.config) for prompt in prompts]

    def cost(self, setting: Setting, layout: StageLayout, stages: tuple[int, ...] = DENSE) -> Costs:
        """Costs of a setting, from the product's own accounting."""
        return costs(
            self.meter.model.text_config, layout, self.plans(setting, stages), self._decoded
        )

    def dense_cost(self) -> Costs:
        """What the same prompts cost without METok."""
        plans = self.plans(Setting((1, 2, 3), decode_keep=0.0))
        return costs(self.meter.model.text_config, None, plans, self._decoded)

    @property
    def _decoded(self) -> int:
        return max(len(sample.answer) for sample in self.meter.samples)

    def _best(
        self,
        rung: Sequence[Candidate],
        budget: float,
        encodings: Sequence[tuple[int, ...]] = (DENSE,),
    ) -> tuple[Setting, StageLayout] | None:
        able = [
            (candidate.setting(keep), candidate.layout)
            for candidate in sorted(rung, key=lambda c: (c.flops, c.layout.num_groups))
            for keep in self.decode_keeps
        ]
        for stages in encodings:
            settings = [setting for setting, _ in able]
            found = self.meter.measure(settings, f"settings for {budget:g}", stages)
            able = [a for a, moved in zip(able, found, strict=True) if moved.worst <= budget]
        return able[0] if able else None

    def _choice(self, setting: Setting, layout: StageLayout, with_stage1: bool) -> Choice:
        p, ratio = setting.boundaries, setting.keep_ratio
        L = self.meter.model.decoder.num_layers
        assert p[2] < L
        steps = {
            "drop_from_p2": Setting((p[2], p[2], p[2]), drops=(3,)),
            "select_at_p1": Setting((p[1], p[1], p[2]), ratio, drops=(2, 3)),
            "select_at_p0": Setting(p, ratio),
            "decode": setting,
        }
        found = self.meter.measure(list(steps.values()), "parts")
        behind = None
        if with_stage1:
            (moved,) = self.meter.measure([setting], "with stage 1", STAGE1)
            behind = (moved, self.cost(setting, layout, STAGE1))
        parts = dict(zip(steps, found, strict=True))
        return Choice(setting, layout, self.cost(setting, layout), parts, behind)


def share_saved(dense: Costs, chosen: Costs) -> dict[str, Any]:
    """Shares of the dense costs that are saved, 0 to 1."""
    return {
        "prefill_flops": 1 - chosen.prefill_flops / dense.prefill_flops,
        "kv_bytes": 1 - chosen.kv_bytes / dense.kv_bytes,
    }
