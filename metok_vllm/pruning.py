"""Stage 2, the rule: which visual tokens the next layers keep, inside each event.

Everything runs on the scores' device in operations of fixed size, so a GPU is never waited for.
Source: METok, arXiv 2506.02850, section 3.2, with totals fixed in advance (docs/metok.md).

Shape suffixes: N visual tokens, E events, M kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metok_vllm.kernels.event_topk import event_topk
from metok_vllm.plan.prompt import VideoCounts
from metok_vllm.plan.step import StagedPrompt, StagedStep

# Quota of a token in a key event and in another one, doubled to stay whole: at p0, at p1.
KEY_WEIGHT, OTHER_WEIGHT = {1: 2, 2: 1}, {1: 1, 2: 0}


@dataclass(frozen=True)
class TokenEvents:
    """The events of one video as they stand on its visual tokens."""

    event_N: Tensor  # int64, rising from 0
    key_E: Tensor  # bool
    relevance_E: Tensor  # float32


def share_out(total: int, size_E: Tensor, weight_E: Tensor, relevance_E: Tensor) -> Tensor:
    """Tokens that each event keeps, int64 [E], `total` in all.

    In proportion to weight times size with the largest-remainder rule (ties: the earlier event),
    capped at the size; what is left over goes to the most relevant events first. Whole numbers
    throughout, so the result is exact.
    """
    quota_E = weight_E * size_E
    whole = quota_E.sum()
    divisor = whole.clamp(min=1)
    count_E = total * quota_E // divisor
    remainder_E = total * quota_E % divisor
    missing = torch.where(whole > 0, total - count_E.sum(), 0)
    count_E = count_E + (_rank(remainder_E) < missing)
    count_E = torch.minimum(count_E, size_E)
    left = total - count_E.sum()
    spare_E = size_E - count_E
    order = torch.argsort(relevance_E, descending=True, stable=True)
    sorted_spare_E = spare_E[order]
    before_E = sorted_spare_E.cumsum(0) - sorted_spare_E
    extra_E = torch.minimum((left - before_E).clamp(min=0), sorted_spare_E)
    return count_E.index_add(0, order, extra_E)


def _rank(value_E: Tensor) -> Tensor:
    order = torch.argsort(value_E, descending=True, stable=True)
    rank_E = torch.empty_like(order)
    rank_E[order] = torch.arange(len(order), device=order.device)
    return rank_E


@dataclass
class _Video:
    """A video on its way through the stages: its tokens that are still there."""

    counts: VideoCounts
    events: TokenEvents
    event_N: Tensor
    score_N: Tensor


class Selection:
    """The visual tokens of a step's METok prompts, narrowed at each boundary.

    `events_of` finds the events of a video by its key; a video whose events nobody remembers is
    treated as one event.
    """

    def __init__(
        self,
        step: StagedStep,
        events_of: Callable[[str], TokenEvents | None],
        device: torch.device,
    ) -> None:
        self.step = step
        self.device = device
        self.prompts: list[tuple[StagedPrompt, list[_Video]]] = []
        for prompt in step.selecting():
            videos = []
            for span in prompt.plan.videos:
                # FastV selects among all tokens of a video.
                known = None if prompt.plan.fastv else events_of(span.key)
                events = known or _one_event(span.tokens, device)
                event_N = events.event_N[: span.tokens]
                assert len(event_N) == span.tokens
                unscored = torch.empty(0, device=device)
                videos.append(_Video(span.counts, events, event_N, unscored))
            self.prompts.append((prompt, videos))

    def rank(self, stage: int, scores: Sequence[Tensor]) -> None:
        """Take the scores [rows of the prompt at stage - 1] of each selecting prompt."""
        for (prompt, videos), score_N in zip(self.prompts, scores, strict=True):
            for video, (_, row) in zip(videos, prompt.videos(stage - 1), strict=True):
                start = row - prompt.first_row[stage - 1]
                video.score_N = score_N[start : start + video.counts.prefill[stage - 1]]

    def enter(self, stage: int) -> Tensor | None:
        """Rows of stage - 1 that run on in `stage`, rising; None when all of them do."""
        rows = self.step.num_rows[stage]
        if rows == self.step.num_rows[stage - 1]:
            return None
        before = self._rows([prompt for prompt, _ in self._losing(stage)], stage - 1)
        keep = torch.ones(self.step.num_rows[stage - 1], dtype=torch.bool, device=self.device)
        keep[before] = False
        if stage < 3:
            keep[before[self._narrow(stage)]] = True
        return torch.argsort(keep, descending=True, stable=True)[:rows]

    def kept_for_decode(self, stage: int) -> Tensor | None:
        """Rows of `stage` that it holds for decoding beside the text; None for text alone."""
        evicted = [(prompt, videos) for prompt, videos in self.prompts if prompt.plan.evicts]
        videos = [video for _, of_prompt in evicted for video in of_prompt]
        wanted = [video.counts.decode[stage] for video in videos]
        if not sum(wanted):
            return None
        # A share of each video, not of each event: every video counts as one.
        score_N = torch.cat([video.score_N for video in videos])
        video_N = torch.cat(
            [torch.full_like(video.event_N, number) for number, video in enumerate(videos)]
        )
        row_N = self._rows([prompt for prompt, _ in evicted], stage)
        count = [torch.full((1,), n, dtype=torch.int64, device=self.device) for n in wanted]
        return row_N[event_topk(score_N, video_N, torch.cat(count), sum(wanted))]

    def _losing(self, stage: int) -> list[tuple[StagedPrompt, list[_Video]]]:
        """Prompts that lose rows at the entry of `stage`."""
        return [(p, videos) for p, videos in self.prompts if p.rows[stage] < p.rows[stage - 1]]

    def _narrow(self, stage: int) -> Tensor:
        """Kept among these prompts' visual tokens, as one index [M]; updates the videos."""
        events, counts, scores, totals = [], [], [], []
        first = 0
        videos = [video for _, of_prompt in self._losing(stage) for video in of_prompt]
        for video in videos:
            key_E = video.events.key_E
            size_E = torch.zeros(len(key_E), dtype=torch.int64, device=self.device)
            size_E.index_add_(0, video.event_N, torch.ones_like(video.event_N))
            weight_E = torch.where(key_E, KEY_WEIGHT[stage], OTHER_WEIGHT[stage])
            total = video.counts.prefill[stage]
            counts.append(share_out(total, size_E, weight_E, video.events.relevance_E))
            events.append(video.event_N + first)
            scores.append(video.score_N)
            totals.append(total)
            first += len(key_E)
        score_N, event_N = torch.cat(scores), torch.cat(events)
        kept_M = event_topk(score_N, event_N, torch.cat(counts), sum(totals))
        first = 0
        score_M, event_M = score_N[kept_M].split(totals), event_N[kept_M].split(totals)
        for video, score, event in zip(videos, score_M, event_M, strict=True):
            video.score_N, video.event_N = score, event - first
            first += len(video.events.key_E)
        return kept_M

    def _rows(self, prompts: Sequence[StagedPrompt], stage: int) -> Tensor:
        """Rows at `stage` of the visual tokens of `prompts`, in order."""
        ranges = [
            torch.arange(row, row + video.counts.prefill[stage], device=self.device)
            for prompt in prompts
            for video, row in prompt.videos(stage)
        ]
        return torch.cat(ranges)


def _one_event(tokens: int, device: torch.device) -> TokenEvents:
    return TokenEvents(
        torch.zeros(tokens, dtype=torch.int64, device=device),
        torch.ones(1, dtype=torch.bool, device=device),
        torch.zeros(1, device=device),
    )
