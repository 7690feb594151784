"""A prompt, one way to drop its visual tokens, and the engine's own plan for that.

Sensitivity curves use parts of METok (one boundary, one drop), the search all of it. A setting with
all parts gives exactly the plan of scheduler and worker.

Shape suffixes: N prompt tokens, M rows of a stage, D hidden, L deepstack levels, X rotary axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning, VideoSpan
from metok_vllm.plan.step import StagedPrompt, StagedStep
from metok_vllm.plan.video_counts import VideoCounts
from metok_vllm.pruning import TokenEvents

ALL_BOUNDARIES = (1, 2, 3)
VIDEO = "calibrated"


@dataclass(frozen=True)
class Prompt:
    """Embeddings [N, D] with the tokens of one video from `start` on, and its events.

    `position_XN` are rotary positions, `deepstack_LND` is what joins the outputs of the first L
    layers. `video` is the video's layout, `tokens` its tokens with the text between its frames,
    `stages` those it was encoded with.
    """

    embeds_ND: Tensor
    position_XN: Tensor
    deepstack_LND: Tensor
    start: int
    tokens: int
    video: VideoLayout
    events: TokenEvents
    stages: tuple[int, ...]

    def to(self, device: torch.device) -> Prompt:
        """The prompt on a device."""
        fixed_N = self.events.fixed_N
        events = TokenEvents(
            self.events.event_N.to(device),
            self.events.key_E.to(device),
            self.events.relevance_E.to(device),
            None if fixed_N is None else fixed_N.to(device),
        )
        moved = {
            name: getattr(self, name).to(device)
            for name in ("embeds_ND", "position_XN", "deepstack_LND")
        }
        return replace(self, events=events, **moved)

    def __len__(self) -> int:
        return len(self.embeds_ND)

    @cached_property
    def next_position(self) -> int:
        """The rotary position of the first answer token, on every axis."""
        return int(self.position_XN.max()) + 1

    def joined(self, layer: int, hidden_MD: Tensor, row_M: Tensor) -> Tensor:
        """A layer's output at these rows of the prompt, as the next layer gets it."""
        if layer >= len(self.deepstack_LND):
            return hidden_MD
        return hidden_MD + self.deepstack_LND[layer, row_M]

    @property
    def query_rows(self) -> int:
        """Rows whose attention scores the visual tokens: the text after the video."""
        return max(len(self) - self.start - self.tokens, 1)


@dataclass(frozen=True)
class Setting:
    """Boundaries p0 <= p1 <= p2 and ratios. Equal boundaries leave a stage without layers.

    `drops` lists the boundaries at which the prefill drops tokens. With `decode_keep` None,
    decoding attends to all rows that a layer ran on.
    """

    boundaries: tuple[int, int, int]
    keep_ratio: float = 1.0
    decode_keep: float | None = None
    drops: tuple[int, ...] = ALL_BOUNDARIES


def plan_of(setting: Setting, prompt: Prompt, config: METokConfig) -> PromptPlan:
    """The engine's plan for the prompt."""
    served = config.updated(
        {
            "enabled": True,
            "stages": prompt.stages,
            "keep_ratio": setting.keep_ratio,
            "decode_keep": 1.0 if setting.decode_keep is None else setting.decode_keep,
        }
    )
    pruning = Pruning.of_video(served, prompt.video)
    span = (VIDEO, prompt.start, prompt.tokens, pruning)
    plan = PromptPlan.of(len(prompt), [span])
    assert plan is not None, "stages 2 and 3 are on"
    if setting.drops == ALL_BOUNDARIES and setting.decode_keep is not None:
        return plan
    (whole,) = plan.videos
    partial = replace(whole, counts=_partial_counts(whole, setting))
    prunes, evicts = bool(setting.drops), setting.decode_keep is not None
    return replace(plan, videos=(partial,), prunes=prunes, evicts=evicts)


def step_of(plan: PromptPlan) -> StagedStep:
    """An engine step with this prompt alone."""
    rows = tuple(plan.prompt_tokens - dropped for dropped in plan.prefill_dropped)
    first = (0,) * NUM_STAGES
    prompt = StagedPrompt(VIDEO, plan, 0, 0, plan.prompt_tokens, first, rows)
    return StagedStep((prompt,), plan.prompt_tokens, rows)


def _partial_counts(span: VideoSpan, setting: Setting) -> VideoCounts:
    prefill, fixed = [span.tokens], span.counts.separators
    for stage in range(1, NUM_STAGES):
        drops = stage in setting.drops
        prefill.append(span.counts.prefill[stage] if drops else prefill[-1])
    decode = list(prefill)
    if setting.decode_keep is not None:
        share = Fraction(repr(setting.decode_keep))
        decode[1:] = [fixed + math.ceil(share * (count - fixed)) for count in prefill[1:]]
    return VideoCounts(tuple(prefill), tuple(decode), fixed)
