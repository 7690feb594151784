"""One way to drop visual tokens, and the engine's own plan for it.

Curves need parts of METok alone (one boundary, one drop), the search all of it. A setting with
everything on gives exactly the plan that scheduler and worker would compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from metok_vllm.benchmarks.calibration.passes import Prompt
from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan, Pruning, VideoCounts, VideoSpan, key_share
from metok_vllm.plan.step import StagedPrompt, StagedStep

ALL_BOUNDARIES = (1, 2, 3)
VIDEO = "calibrated"


@dataclass(frozen=True)
class Setting:
    """Boundaries p0 <= p1 <= p2 (equal ones leave a stage without layers), ratios, and what is on.

    `drops` says at which of the three boundaries tokens are dropped in the prefill. `decode_keep`
    None leaves decoding alone: it sees what each layer ran on.
    """

    boundaries: tuple[int, int, int]
    keep_ratio: float = 1.0
    decode_keep: float | None = None
    drops: tuple[int, ...] = ALL_BOUNDARIES


def plan_of(setting: Setting, prompt: Prompt, grid: int, config: METokConfig) -> PromptPlan:
    """What the engine does to the prompt, in one step. `grid`: patches a side of a frame."""
    decode = 1.0 if setting.decode_keep is None else setting.decode_keep
    served = config.updated(
        {
            "enabled": True,
            "stages": prompt.stages,
            "keep_ratio": setting.keep_ratio,
            "decode_keep": decode,
        }
    )
    wishes = Pruning.of(served, key_share(prompt.frames, grid, served))
    video = (VIDEO, prompt.start, prompt.tokens, wishes)
    plan = PromptPlan.of(len(prompt), [video], step_tokens=len(prompt))
    assert plan is not None, "stages 2 and 3 are on"
    if setting.drops == ALL_BOUNDARIES and setting.decode_keep is not None:
        return plan
    (span,) = plan.videos
    partial = replace(span, counts=_partly(span, setting))
    prunes, evicts = bool(setting.drops), setting.decode_keep is not None
    return replace(plan, videos=(partial,), prunes=prunes, evicts=evicts)


def _partly(span: VideoSpan, setting: Setting) -> VideoCounts:
    ran = [span.tokens]
    for stage in range(1, NUM_STAGES):
        ran.append(span.counts.prefill[stage] if stage in setting.drops else ran[-1])
    held = list(ran)
    if setting.decode_keep is not None:
        share = Fraction(repr(setting.decode_keep))
        held[1:] = [math.ceil(share * n) for n in ran[1:]]
    return VideoCounts(tuple(ran), tuple(held))


def step_of(plan: PromptPlan) -> StagedStep:
    """A step with this prompt alone."""
    rows = tuple(plan.prompt_tokens - dropped for dropped in plan.prefill_dropped)
    prompt = StagedPrompt(VIDEO, plan, 0, (0,) * NUM_STAGES, rows)
    return StagedStep((prompt,), rows)
