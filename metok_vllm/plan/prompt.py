"""What stages 2 and 3 will do to one prompt: visual tokens per stage, fixed before it runs.

The scheduler computes this plan and sends it to the workers with the request: block tables,
sequence lengths and slots follow from it. Pure Python, exact arithmetic.
Source: METok, arXiv 2506.02850, sections 3.2 and 3.3, with totals fixed in advance as docs/metok.md
defines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import FASTV, METOK
from metok_vllm.plan.layers import NUM_STAGES

PRUNE, EVICT = 2, 3


@dataclass(frozen=True)
class Pruning:
    """Settings of stages 2 and 3 for one video.

    `key_share` is the share of its tokens that belongs to key events if all events were equally
    long. `fastv_keep` is set for the FastV method: that share stays from the first boundary on,
    for decoding too.
    """

    stages: tuple[int, ...]
    keep_ratio: Fraction
    decode_keep: Fraction
    key_share: Fraction
    fastv_keep: Fraction | None = None

    @classmethod
    def of(cls, config: METokConfig, share: Fraction) -> Pruning:
        """From a configuration; shares are read as the decimals that users write."""
        keep, decode = Fraction(repr(config.keep_ratio)), Fraction(repr(config.decode_keep))
        if config.rule == FASTV:
            return cls((PRUNE,), keep, decode, share, Fraction(repr(config.rule_keep)))
        own = config.stages if config.rule == METOK else ()
        stages = tuple(stage for stage in own if stage in (PRUNE, EVICT))
        return cls(stages, keep, decode, share)

    def counts(self, tokens: int) -> VideoCounts:
        """Visual tokens of a video that enters the decoder with `tokens`, stage by stage."""
        prefill = (tokens,) * NUM_STAGES
        if PRUNE in self.stages and self.fastv_keep is not None:
            kept = math.ceil(self.fastv_keep * tokens)
            prefill = (tokens, kept, kept, kept)
        elif PRUNE in self.stages:
            key, other = self.key_share * tokens, (1 - self.key_share) * tokens
            first = math.ceil(self.keep_ratio * (key + other / 2))
            second = math.ceil(self.keep_ratio * self.keep_ratio * key)
            prefill = (tokens, first, second, 0)
        decode = prefill
        if EVICT in self.stages:
            first, second = (math.ceil(self.decode_keep * n) for n in prefill[1:3])
            decode = (tokens, first, second, 0)
        return VideoCounts(prefill, decode)


@dataclass(frozen=True)
class VideoCounts:
    """Visual tokens of one video by stage: run on in the prefill, and cached for decoding."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]


@dataclass(frozen=True)
class VideoSpan:
    """Where a video's prunable tokens stand in the prompt. `key` names its encoder output."""

    key: str
    start: int
    tokens: int
    counts: VideoCounts


@dataclass(frozen=True)
class PromptPlan:
    """Stages 2 and 3 of one request. `fastv`: the prompt's last token alone ranks, and a video is
    one event."""

    prompt_tokens: int
    videos: tuple[VideoSpan, ...]
    prunes: bool
    evicts: bool
    fastv: bool = False

    @classmethod
    def of(
        cls, prompt_tokens: int, videos: Sequence[tuple[str, int, int, Pruning]]
    ) -> PromptPlan | None:
        """The plan of a prompt with `videos` (key, first token, tokens, pruning), or None.

        The prompt's last row gives the first new token, so a video that ends the prompt leaves its
        last token to the text.
        """
        if not videos or not videos[0][3].stages:
            return None
        stages = videos[0][3].stages
        spans = []
        for key, start, tokens, pruning in sorted(videos, key=lambda video: video[1]):
            prunable = tokens - 1 if start + tokens == prompt_tokens else tokens
            counts = replace(pruning, stages=stages).counts(prunable)
            spans.append(VideoSpan(key, start, prunable, counts))
        fastv = videos[0][3].fastv_keep is not None
        return cls(prompt_tokens, tuple(spans), PRUNE in stages, EVICT in stages, fastv)

    @cached_property
    def prefill_dropped(self) -> tuple[int, ...]:
        """Tokens of the prompt that each stage's layers do not run on."""
        return tuple(
            sum(video.tokens - video.counts.prefill[stage] for video in self.videos)
            for stage in range(NUM_STAGES)
        )

    @cached_property
    def decode_dropped(self) -> tuple[int, ...]:
        """Tokens of the prompt that each stage does not cache once the prefill is done."""
        return tuple(
            sum(video.tokens - video.counts.decode[stage] for video in self.videos)
            for stage in range(NUM_STAGES)
        )

    @property
    def needs_scores(self) -> bool:
        """Whether visual tokens are ranked at the first two boundaries."""
        return self.prunes or any(video.counts.decode[1] for video in self.videos)

    @property
    def last_visual(self) -> int:
        """Position after the last visual token."""
        return self.videos[-1].start + self.videos[-1].tokens

    @property
    def first_visual(self) -> int:
        """Position of the first visual token: what stands before it is never moved."""
        return self.videos[0].start

    @property
    def query_rows(self) -> int:
        """The prompt's last rows whose attention scores the visual tokens: those after the last
        video, or FastV's single one."""
        return 1 if self.fastv else self.prompt_tokens - self.last_visual

    def slots(self, stage: int, num_tokens: int) -> int:
        """Cache slots that a stage needs for the first `num_tokens` tokens of the request.

        Until its last chunk, a prompt runs through stage 0 alone.
        """
        if num_tokens > self.prompt_tokens:
            return num_tokens - self.decode_dropped[stage]
        if num_tokens == self.prompt_tokens:
            return num_tokens - self.prefill_dropped[stage]
        return num_tokens if stage == 0 else 0

    def visual_tokens(self, *, decode: bool = False) -> tuple[int, ...]:
        """Visual tokens of all videos by stage: run on in the prefill, or cached for decoding."""
        return tuple(
            sum((v.counts.decode if decode else v.counts.prefill)[stage] for v in self.videos)
            for stage in range(NUM_STAGES)
        )
