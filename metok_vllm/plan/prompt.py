"""What stages 2 and 3 will do to one prompt: tokens of its videos per stage, fixed before it runs.

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
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.video_counts import VideoCounts, in_whole_blocks

PRUNE, EVICT = 2, 3


@dataclass(frozen=True)
class Pruning:
    """Settings of stages 2 and 3 for one video.

    `key_share` is the share of its visual tokens that belongs to key events if all events were
    equally long. `fastv_keep` is set for the FastV method: that share stays from the first boundary
    on, for decoding too. `separators` of the video's tokens are text between its frames, which
    always stays; `ends_in_separator`: the last token is one of them. Stage 3 waits until
    `evict_after` tokens have been generated.
    """

    stages: tuple[int, ...]
    keep_ratio: Fraction
    decode_keep: Fraction
    key_share: Fraction
    fastv_keep: Fraction | None = None
    separators: int = 0
    ends_in_separator: bool = False
    evict_after: int = 0

    @classmethod
    def of(
        cls,
        config: METokConfig,
        share: Fraction,
        separators: int = 0,
        ends_in_separator: bool = False,
    ) -> Pruning:
        """From a configuration; shares are read as the decimals that users write."""
        own = config.stages if config.rule == METOK else ()
        fastv = config.rule == FASTV
        stages = (PRUNE,) if fastv else tuple(stage for stage in own if stage in (PRUNE, EVICT))
        return cls(
            stages,
            Fraction(repr(config.keep_ratio)),
            Fraction(repr(config.decode_keep)),
            share,
            Fraction(repr(config.rule_keep)) if fastv else None,
            separators,
            ends_in_separator,
            config.evict_after if EVICT in stages else 0,
        )

    @classmethod
    def of_video(cls, config: METokConfig, video: VideoLayout) -> Pruning:
        """From a configuration and the layout of the video."""
        share = video.key_share(config)
        return cls.of(config, share, video.separators, video.ends_in_separator)

    def without_last_token(self) -> Pruning:
        """The same for a video whose last token is left out."""
        last = int(self.ends_in_separator)
        return replace(self, separators=self.separators - last, ends_in_separator=False)

    def counts(self, tokens: int) -> VideoCounts:
        """Tokens of a video that enters the decoder with `tokens`, stage by stage."""
        fixed, visual = self.separators, tokens - self.separators
        assert 0 <= fixed <= tokens, (fixed, tokens)
        ran: tuple[int, ...] = (visual,) * (NUM_STAGES - 1)
        if PRUNE in self.stages and self.fastv_keep is not None:
            ran = (math.ceil(self.fastv_keep * visual),) * (NUM_STAGES - 1)
        elif PRUNE in self.stages:
            key, other = self.key_share * visual, (1 - self.key_share) * visual
            first = math.ceil(self.keep_ratio * (key + other / 2))
            ran = (first, math.ceil(self.keep_ratio * self.keep_ratio * key), 0)
        held = ran
        if EVICT in self.stages:
            first, second = (math.ceil(self.decode_keep * n) for n in ran[:2])
            held = (first, second, 0)
        prefill, decode = ((tokens, *(fixed + n for n in counts)) for counts in (ran, held))
        return VideoCounts(prefill, decode, fixed)


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
    one event.

    `core`: tokens of the prompt that later prompts may go on from (plan/focus.py); None for none.
    `unit`: KV block size of a prompt that evicts whole blocks at the head of its block tables, once
    `evict_after` tokens have been generated; 0 for one that evicts at the tail, after its prefill.
    """

    prompt_tokens: int
    videos: tuple[VideoSpan, ...]
    prunes: bool
    evicts: bool
    fastv: bool = False
    core: int | None = None
    unit: int = 0
    evict_after: int = 0

    @classmethod
    def of(
        cls,
        prompt_tokens: int,
        videos: Sequence[tuple[str, int, int, Pruning]],
        core: int | None = None,
        block_size: int = 1,
    ) -> PromptPlan | None:
        """The plan of a prompt with `videos` (key, first token, tokens, pruning), or None.

        The prompt's last row gives the first new token, so a video that ends the prompt leaves its
        last token to the text, be it visual or a separator. With a `core` or `evict_after`, stage 3
        gives back whole blocks of `block_size` tokens, and holds more for that.
        """
        if not videos or not videos[0][3].stages:
            return None
        stages = videos[0][3].stages
        spans = []
        for key, start, tokens, pruning in sorted(videos, key=lambda video: video[1]):
            wanted = replace(pruning, stages=stages)
            if start + tokens == prompt_tokens:
                tokens, wanted = tokens - 1, wanted.without_last_token()
            spans.append(VideoSpan(key, start, tokens, wanted.counts(tokens)))
        fastv, unit = videos[0][3].fastv_keep is not None, 0
        after = videos[0][3].evict_after if EVICT in stages else 0
        if fastv:
            core = None  # its last token alone ranks, which every later prompt has of its own
        if EVICT in stages and (core is not None or after):
            unit = block_size
            counts = in_whole_blocks([span.counts for span in spans], unit)
            spans = [replace(span, counts=c) for span, c in zip(spans, counts, strict=True)]
        does = PRUNE in stages, EVICT in stages
        return cls(prompt_tokens, tuple(spans), *does, fastv, core, unit, after)

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

    @cached_property
    def head_blocks(self) -> tuple[int, ...]:
        """Blocks of each stage that are evicted at the head of its block table."""
        if not self.unit:
            return (0,) * NUM_STAGES
        both = zip(self.decode_dropped, self.prefill_dropped, strict=True)
        return tuple((decode - prefill) // self.unit for decode, prefill in both)

    @property
    def decode_from(self) -> int:
        """Tokens of the request from which on it sees no more than decoding holds."""
        return self.prompt_tokens + max(self.evict_after - 1, 0)

    @property
    def needs_scores(self) -> bool:
        """Whether visual tokens are ranked at the first two boundaries.

        Separators ask for it as well: the ranking is what tells them from visual tokens.
        """
        return self.prunes or any(any(video.counts.decode[1:]) for video in self.videos)

    @property
    def last_visual(self) -> int:
        """Position after the last visual token."""
        return self.videos[-1].start + self.videos[-1].tokens

    @property
    def first_visual(self) -> int:
        """Position of the first visual token: what stands before it is never moved."""
        return self.videos[0].start

    @property
    def core_tokens(self) -> int:
        """Tokens of the core: the whole prompt where no later one goes on from it."""
        return self.prompt_tokens if self.core is None else self.core

    @property
    def scoring(self) -> range:
        """Positions whose attention scores the visual tokens: those of the core after the last
        video, or FastV's single one."""
        first = self.prompt_tokens - 1 if self.fastv else self.last_visual
        return range(first, self.core_tokens)

    @property
    def query_rows(self) -> int:
        """The number of these positions."""
        return len(self.scoring)

    def slots(self, stage: int, num_tokens: int) -> int:
        """Cache slots that a stage needs for the first `num_tokens` tokens of the request.

        Until its last chunk, a prompt runs through stage 0 alone.
        """
        if num_tokens > self.decode_from:
            return num_tokens - self.decode_dropped[stage]
        if num_tokens >= self.prompt_tokens:
            return num_tokens - self.prefill_dropped[stage]
        return num_tokens if stage == 0 else 0

    def visual_tokens(self, *, decode: bool = False) -> tuple[int, ...]:
        """Tokens of all videos by stage, with separators: run on in the prefill, or cached for
        decoding."""
        return tuple(
            sum((v.counts.decode if decode else v.counts.prefill)[stage] for v in self.videos)
            for stage in range(NUM_STAGES)
        )
