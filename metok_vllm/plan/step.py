"""One forward step that prefills METok prompts: the rows that each stage runs on.

A step is a flat batch of rows. Every stage runs on all rows of other requests (decodes, plain
prefills); later stages run on fewer rows of a METok prompt. All counts are known before the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metok_vllm.plan.prompt import PromptPlan, VideoSpan


@dataclass(frozen=True)
class StagedPrompt:
    """A METok prompt, or a chunk of one, in a step.

    `first_row` and `rows` are its place among the rows of each stage; `computed` the tokens that
    earlier chunks took.
    """

    request_id: str
    plan: PromptPlan
    computed: int
    first_row: tuple[int, ...]
    rows: tuple[int, ...]

    @property
    def ends(self) -> bool:
        """Whether this step ends the prefill."""
        return self.computed + self.rows[0] == self.plan.prompt_tokens

    def videos(self, stage: int) -> Iterator[tuple[VideoSpan, int]]:
        """Each video with the row of its first token at a stage. One-step prefills only."""
        assert self.plan.one_step
        dropped = 0
        for video in self.plan.videos:
            yield video, self.first_row[stage] + video.start - dropped
            dropped += video.tokens - video.counts.prefill[stage]

    def text_rows(self, stage: int) -> list[range]:
        """Rows at a stage of the text after the first video, which move when tokens are dropped."""
        plan = self.plan
        dropped = 0
        here = range(self.first_row[stage], self.first_row[stage] + self.rows[stage])
        shift = self.first_row[stage] - self.computed
        rows = []
        ends = [video.start for video in plan.videos[1:]] + [plan.prompt_tokens]
        for video, end in zip(plan.videos, ends, strict=True):
            if plan.one_step:
                dropped += video.tokens - video.counts.prefill[stage]
            begin = video.start + video.tokens
            first = max(begin - dropped + shift, here.start)
            last = min(end - dropped + shift, here.stop)
            if first < last:
                rows.append(range(first, last))
        return rows


@dataclass(frozen=True)
class StagedStep:
    """The METok prompts of a step, and the number of rows of each stage."""

    prompts: tuple[StagedPrompt, ...]
    num_rows: tuple[int, ...]

    def selecting(self) -> tuple[StagedPrompt, ...]:
        """Prompts whose visual tokens are ranked in this step."""
        return tuple(p for p in self.prompts if p.plan.one_step and p.plan.needs_scores)

    def pruned(self) -> tuple[StagedPrompt, ...]:
        """Prompts with fewer rows in later stages."""
        return tuple(p for p in self.prompts if p.plan.one_step and p.plan.prunes)

    def evicted(self) -> tuple[StagedPrompt, ...]:
        """Prompts whose cached tokens are evicted in this step."""
        return tuple(p for p in self.prompts if p.plan.evicts and p.ends)

    def saved(self) -> tuple[StagedPrompt, ...]:
        """Chunks whose text must be written again once the prompt is complete."""
        return tuple(p for p in self.prompts if p.plan.evicts and not p.ends)
