"""The cheapest setting whose measured divergence is within a budget.

The curves give the order of the attempts: a candidate's predicted divergence is the sum of its
boundaries' own. Of the candidates predicted within some multiple of the budget, the cheapest ones
are measured. The multiple falls until one is within the budget. The choice was measured; a cheaper
setting may exist, because not all are tried.
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

# Multiples of the budget, and the number of candidates that are measured at each.
MULTIPLES = (8.0, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06)
TRIED_PER_MULTIPLE = 4


@dataclass(frozen=True)
class Candidate:
    """Boundaries and a keep ratio with their prefill FLOPs and predicted divergence."""

    layout: StageLayout
    keep_ratio: float
    flops: float
    predicted: float

    def setting(self, decode_keep: float) -> Setting:
        """The complete setting of stages 2 and 3."""
        return Setting(self.layout.boundaries, self.keep_ratio, decode_keep)


@dataclass(frozen=True)
class Choice:
    """The choice for one budget with its costs and divergences.

    `parts` are the divergences as METok's parts are added: the drop from p2 on, selection at p1,
    selection at p0, decoding on the kept tokens. The last one is the whole setting. `with_stage1`
    is the same setting with stage 1.
    """

    setting: Setting
    layout: StageLayout
    costs: Costs
    parts: dict[str, Divergence]
    with_stage1: tuple[Divergence, Costs]

    @property
    def divergence(self) -> Divergence:
        """The divergence of the whole setting."""
        return list(self.parts.values())[-1]

    def stages(self, budget: float) -> list[int]:
        """Stages to serve it with; stage 1 only if its divergence is within the budget, too."""
        return [1, 2, 3] if self.with_stage1[0].worst <= budget else [2, 3]


class Search:
    """The candidates of one calibration; `find` may be called for several budgets."""

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
        first = meter.model.first_boundary
        layouts = possible_layouts(decoder.num_layers, 0, most_groups, first)
        self.candidates = []
        for ratio in keep_ratios:
            plans = self.plans(Setting((1, 2, 3), ratio, 0.0))
            of_stage = StageCosts(meter.model.text_config, plans)
            for layout in layouts:
                predicted = curves.predicted(layout.boundaries, ratio)
                self.candidates.append(Candidate(layout, ratio, of_stage.flops(layout), predicted))
        self.candidates.sort(key=lambda c: (c.flops, c.layout.num_groups, c.predicted))

    def find(self, budget: float) -> Choice | None:
        """The cheapest measured setting within the budget; None if no attempt is within it."""
        tried: set[Candidate] = set()
        least_p2 = self.curves.least_layer(budget)
        if least_p2 is None:
            return None
        allowed = [c for c in self.candidates if c.layout.boundaries[2] >= least_p2]
        for multiple in MULTIPLES:
            cheapest = [c for c in allowed if c.predicted <= multiple * budget and c not in tried]
            attempts = cheapest[:TRIED_PER_MULTIPLE]
            if (found := self._best(attempts, budget)) is not None:
                return self._choice(*found)
            tried.update(attempts)
        safest = sorted(
            (c for c in allowed if c not in tried), key=lambda c: (c.predicted, c.flops)
        )
        found = self._best(safest[:TRIED_PER_MULTIPLE], budget)
        return None if found is None else self._choice(*found)

    def find_at(self, layout: StageLayout, budget: float, stages: Sequence[int]) -> Setting | None:
        """The cheapest setting with a fixed layout, or None.

        If stage 1 is among the server's `stages`, it is within the budget with stage 1 and without.
        """
        fixed = [c for c in self.candidates if c.layout == layout]
        found = self._best(fixed, budget, (DENSE, STAGE1) if 1 in stages else (DENSE,))
        return None if found is None else found[0]

    def plans(self, setting: Setting, stages: tuple[int, ...] = DENSE) -> list[PromptPlan]:
        """The engine's plans for all prompts."""
        model = self.meter.model
        prompts = [sample.prompt(stages) for sample in self.meter.samples]
        return [plan_of(setting, prompt, model.config) for prompt in prompts]

    def cost(self, setting: Setting, layout: StageLayout, stages: tuple[int, ...] = DENSE) -> Costs:
        """Costs of a setting by the product's own accounting."""
        return costs(
            self.meter.model.text_config, layout, self.plans(setting, stages), self._decoded
        )

    def dense_cost(self) -> Costs:
        """Costs of the same prompts without METok."""
        plans = self.plans(Setting((1, 2, 3), decode_keep=0.0))
        return costs(self.meter.model.text_config, None, plans, self._decoded)

    @property
    def _decoded(self) -> int:
        return max(len(sample.answer) for sample in self.meter.samples)

    def _best(
        self,
        attempts: Sequence[Candidate],
        budget: float,
        encodings: Sequence[tuple[int, ...]] = (DENSE,),
    ) -> tuple[Setting, StageLayout] | None:
        within = [
            (candidate.setting(keep), candidate.layout)
            for candidate in sorted(attempts, key=lambda c: (c.flops, c.layout.num_groups))
            for keep in self.decode_keeps
        ]
        for stages in encodings:
            settings = [setting for setting, _ in within]
            found = self.meter.measure(settings, f"settings for {budget:g}", stages)
            within = [w for w, moved in zip(within, found, strict=True) if moved.worst <= budget]
        return within[0] if within else None

    def _choice(self, setting: Setting, layout: StageLayout) -> Choice:
        p, ratio = setting.boundaries, setting.keep_ratio
        assert p[2] < self.meter.model.decoder.num_layers
        steps = {
            "drop_from_p2": Setting((p[2], p[2], p[2]), drops=(3,)),
            "select_at_p1": Setting((p[1], p[1], p[2]), ratio, drops=(2, 3)),
            "select_at_p0": Setting(p, ratio),
            "decode": setting,
        }
        found = self.meter.measure(list(steps.values()), "parts")
        (moved,) = self.meter.measure([setting], "with stage 1", STAGE1)
        with_stage1 = (moved, self.cost(setting, layout, STAGE1))
        parts = dict(zip(steps, found, strict=True))
        return Choice(setting, layout, self.cost(setting, layout), parts, with_stage1)


def share_saved(dense: Costs, chosen: Costs) -> dict[str, Any]:
    """The saved shares of the dense costs, 0 to 1."""
    return {
        "prefill_flops": 1 - chosen.prefill_flops / dense.prefill_flops,
        "kv_bytes": 1 - chosen.kv_bytes / dense.kv_bytes,
    }
