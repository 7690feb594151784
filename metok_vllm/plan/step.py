"""One forward step that prefills METok prompts: the rows that each stage runs on.

A step is a flat batch of rows. Stage 0 runs a METok prompt chunk by chunk, as vLLM schedules it.
Stages 1 to 3 run once, in the step that ends the prompt: on the rows of the whole prompt, of which
those of earlier chunks come from the prefill buffer. So stage 0's output is joined first: rows of
other requests and whole METok prompts, in the order of the batch. All counts are known before the
step; rows of other requests run in every stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metok_vllm.plan.prompt import PromptPlan, VideoSpan


@dataclass(frozen=True)
class StagedPrompt:
    """A METok prompt, or a chunk of one, in a step.

    `computed` tokens came in earlier chunks, `batch_row` and `scheduled` are this chunk's rows.
    `first_row` and `rows` are the prompt's place among the rows of each stage; entry 0 counts in
    the joined rows. A chunk that does not end its prompt has no rows there. `buffer_row` is the
    first row of the prompt in the prefill buffer; None for a prompt of one chunk.
    """

    request_id: str
    plan: PromptPlan
    computed: int
    batch_row: int
    scheduled: int
    first_row: tuple[int, ...]
    rows: tuple[int, ...]
    buffer_row: int | None = None

    @property
    def ends(self) -> bool:
        """Whether this step ends the prefill."""
        return self.computed + self.scheduled == self.plan.prompt_tokens

    @property
    def scoring(self) -> range:
        """Rows of this chunk, counted from its first one, whose queries score visual tokens."""
        whole = self.plan.scoring
        first, last = (
            min(max(position - self.computed, 0), self.scheduled)
            for position in (whole.start, whole.stop)
        )
        return range(first, last)

    def scoring_at(self, stage: int) -> range:
        """The same rows among all rows of a stage, in the step that ends the prompt.

        They come after the last video, where every stage runs on every token.
        """
        whole, shift = self.plan.scoring, self.first_row[stage] + self.rows[stage]
        shift -= self.plan.prompt_tokens
        return range(whole.start + shift, whole.stop + shift)

    def videos(self, stage: int) -> Iterator[tuple[VideoSpan, int]]:
        """Each video with the row of its first token at a stage."""
        dropped = 0
        for video in self.plan.videos:
            yield video, self.first_row[stage] + video.start - dropped
            dropped += video.tokens - video.counts.prefill[stage]

    def text_rows(self, stage: int) -> list[range]:
        """Rows at a stage of the text after the first video, which move when tokens are dropped."""
        rows, dropped = [], 0
        ends = [video.start for video in self.plan.videos[1:]] + [self.plan.prompt_tokens]
        for video, end in zip(self.plan.videos, ends, strict=True):
            dropped += video.tokens - video.counts.prefill[stage]
            shift = self.first_row[stage] - dropped
            first, last = video.start + video.tokens + shift, end + shift
            if first < last:
                rows.append(range(first, last))
        return rows


@dataclass(frozen=True)
class StagedStep:
    """The METok prompts of a step, and the number of rows of each stage (entry 0: joined rows).

    `batch_rows` is the number of rows of the batch that stage 0 runs on.
    """

    prompts: tuple[StagedPrompt, ...]
    batch_rows: int
    num_rows: tuple[int, ...]

    @property
    def joins(self) -> bool:
        """Whether the joined rows differ from the batch's."""
        return any(not p.ends or p.computed for p in self.prompts)

    def selecting(self) -> tuple[StagedPrompt, ...]:
        """Prompts whose visual tokens are ranked in this step."""
        return tuple(p for p in self.prompts if p.ends and p.plan.needs_scores)

    def evicted(self) -> tuple[StagedPrompt, ...]:
        """Prompts whose caches shrink to what decoding holds, at the front of their slots."""
        return tuple(p for p in self.prompts if p.ends and p.plan.evicts and not p.plan.unit)

    def visual_first(self, stage: int) -> tuple[StagedPrompt, ...]:
        """Prompts whose slots of a stage are ordered: what decoding will not hold comes first."""
        return tuple(p for p in self.prompts if p.ends and p.plan.head_blocks[stage])

    def chunks(self) -> tuple[StagedPrompt, ...]:
        """Prompts that later steps go on with: the rows of this one are saved."""
        return tuple(p for p in self.prompts if not p.ends)

    def ending(self) -> tuple[StagedPrompt, ...]:
        """Prompts with rows in the prefill buffer that this step ends."""
        return tuple(p for p in self.prompts if p.ends and p.computed)

    def joined(self) -> Iterator[tuple[StagedPrompt | None, range]]:
        """Parts of the joined rows, in order: (None, batch rows), or (prompt, buffer rows)."""
        row = 0
        for prompt in self.prompts:
            if row < prompt.batch_row:
                yield None, range(row, prompt.batch_row)
            row = prompt.batch_row + prompt.scheduled
            if not prompt.ends:
                continue
            if prompt.computed:
                assert prompt.buffer_row is not None
                first = prompt.buffer_row
                yield prompt, range(first, first + prompt.computed)
            yield None, range(prompt.batch_row, row)
        if row < self.batch_rows:
            yield None, range(row, self.batch_rows)
