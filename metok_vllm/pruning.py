"""Stage 2, the rule: which visual tokens the next layers keep, inside each event.

Separators are the text tokens between a video's frames. They always stay: each is added to what its
event keeps, with a score above every visual token's. Everything runs on the scores' device in
operations of fixed size, without a host sync.
Source: METok, arXiv 2506.02850, section 3.2, with totals fixed in advance (docs/metok.md).

Shape suffixes: N tokens of videos, E events, M kept tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metok_vllm.apportion import share_out
from metok_vllm.kernels.event_topk import event_topk
from metok_vllm.plan.step import StagedPrompt, StagedStep
from metok_vllm.plan.video_counts import VideoCounts

# Quota of a token in a key event and in another one, doubled to stay whole: at p0, p1 and p2.
KEY_WEIGHT, OTHER_WEIGHT = {1: 2, 2: 1, 3: 0}, {1: 1, 2: 0, 3: 0}
# Above every attention mass, which is at most 1, and finite, as event_topk asks.
SEPARATOR_SCORE = 2.0


@dataclass(frozen=True)
class TokenEvents:
    """The events of one video's tokens, and which of them are separators (None: no token is)."""

    event_N: Tensor  # int64, rising from 0
    key_E: Tensor  # bool
    relevance_E: Tensor  # float32
    fixed_N: Tensor | None = None  # bool

    @classmethod
    def one(cls, fixed_N: Tensor) -> TokenEvents:
        """All tokens in one event."""
        return _one_event(len(fixed_N), fixed_N.device, fixed_N)


@dataclass
class _Video:
    """A video's tokens that the current stage runs on.

    `fixed_N` marks the separators; None: there are none, or they are not known.
    """

    counts: VideoCounts
    events: TokenEvents
    event_N: Tensor
    fixed_N: Tensor | None
    score_N: Tensor


class Selection:
    """The visual tokens of a step's METok prompts, narrowed at each boundary.

    `events_of` returns the events of a video by its key; a video without events is one event. Its
    separators are not known then: as many of its best-scored tokens stay in their place, because
    the counts of a plan hold in any case.

    At each boundary: `set_scores`, then `enter`; `kept_for_decode` reads the tokens and scores
    that these two leave.
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
                events = events_of(span.key)
                if events is None or prompt.plan.fastv:
                    # FastV selects among all visual tokens of a video.
                    fixed_N = None if events is None else events.fixed_N
                    events = _one_event(span.tokens, device, fixed_N)
                event_N, fixed_N = events.event_N[: span.tokens], None
                assert len(event_N) == span.tokens
                if span.counts.separators and events.fixed_N is not None:
                    fixed_N = events.fixed_N[: span.tokens]
                unscored = torch.empty(0, device=device)
                videos.append(_Video(span.counts, events, event_N, fixed_N, unscored))
            self.prompts.append((prompt, videos))

    def set_scores(self, scores: Sequence[Tensor], stage: int) -> None:
        """Set the scores of each selecting prompt, one per row that it has in stage - 1."""
        for (prompt, videos), score_N in zip(self.prompts, scores, strict=True):
            for video, (_, row) in zip(videos, prompt.videos(stage - 1), strict=True):
                start = row - prompt.first_row[stage - 1]
                of_video_N = score_N[start : start + video.counts.prefill[stage - 1]]
                if video.fixed_N is not None:
                    of_video_N = of_video_N.masked_fill(video.fixed_N, SEPARATOR_SCORE)
                video.score_N = of_video_N

    def enter(self, stage: int) -> Tensor | None:
        """Rows of stage - 1 that `stage` runs on, rising; None if it runs on all of them."""
        rows = self.step.num_rows[stage]
        if rows == self.step.num_rows[stage - 1]:
            return None
        before = self._rows([prompt for prompt, _ in self._losing(stage)], stage - 1)
        keep = torch.ones(self.step.num_rows[stage - 1], dtype=torch.bool, device=self.device)
        keep[before] = False
        kept_M = self._narrow(stage)
        if len(kept_M):
            keep[before[kept_M]] = True
        return torch.argsort(keep, descending=True, stable=True)[:rows]

    def kept_for_decode(self, stage: int, prompts: Sequence[StagedPrompt]) -> Tensor | None:
        """Rows of `stage` that `prompts` hold for decoding beside the text around the videos.

        Their separators are among them. None for that text alone.
        """
        ids = {prompt.request_id for prompt in prompts}
        evicted = [of for of in self.prompts if of[0].request_id in ids]
        videos = [video for _, of_prompt in evicted for video in of_prompt]
        wanted = [video.counts.decode[stage] for video in videos]
        if not sum(wanted):
            return None
        # The share is one of each video, not of each event.
        score_N = torch.cat([video.score_N for video in videos])
        video_N = torch.cat(
            [torch.full_like(video.event_N, number) for number, video in enumerate(videos)]
        )
        row_N = self._rows([prompt for prompt, _ in evicted], stage)
        count = [torch.full((1,), n, dtype=torch.int64, device=self.device) for n in wanted]
        return row_N[event_topk(score_N, video_N, torch.cat(count), sum(wanted))]

    def _losing(self, stage: int) -> list[tuple[StagedPrompt, list[_Video]]]:
        """Prompts that have fewer rows in `stage` than before."""
        return [(p, videos) for p, videos in self.prompts if p.rows[stage] < p.rows[stage - 1]]

    def _narrow(self, stage: int) -> Tensor:
        """Tokens to keep of all videos that lose rows, as one index [M]; updates the videos."""
        videos = [video for _, of_prompt in self._losing(stage) for video in of_prompt]
        totals = [video.counts.prefill[stage] for video in videos]
        if not sum(totals):
            for video in videos:
                video.score_N, video.event_N = video.score_N[:0], video.event_N[:0]
            return torch.empty(0, dtype=torch.int64, device=self.device)
        events, counts, scores = [], [], []
        first = 0
        for video in videos:
            events.append(video.event_N + first)
            counts.append(_event_counts(video, stage))
            scores.append(video.score_N)
            first += len(video.events.key_E)
        score_N, event_N = torch.cat(scores), torch.cat(events)
        kept_M = event_topk(score_N, event_N, torch.cat(counts), sum(totals))
        first = 0
        score_M, event_M = score_N[kept_M].split(totals), event_N[kept_M].split(totals)
        for video, score, event in zip(videos, score_M, event_M, strict=True):
            video.score_N, video.event_N = score, event - first
            if video.fixed_N is not None:
                # Each separator stays, with a score that no visual token reaches.
                video.fixed_N = score == SEPARATOR_SCORE
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


def _event_counts(video: _Video, stage: int) -> Tensor:
    """Tokens of each event that `stage` keeps, int64 [E]: a share of the visual ones, and every
    separator."""
    key_E, total = video.events.key_E, video.counts.prefill[stage]
    fixed_E = torch.zeros(len(key_E), dtype=torch.int64, device=key_E.device)
    visual_E = fixed_E.clone()
    if video.fixed_N is None:
        visual_E.index_add_(0, video.event_N, torch.ones_like(video.event_N))
    else:
        fixed_E.index_add_(0, video.event_N, video.fixed_N.long())
        visual_E.index_add_(0, video.event_N, (~video.fixed_N).long())
        total -= video.counts.separators
    weight_E = torch.where(key_E, KEY_WEIGHT[stage], OTHER_WEIGHT[stage])
    return share_out(total, visual_E, weight_E, video.events.relevance_E) + fixed_E


def _one_event(tokens: int, device: torch.device, fixed_N: Tensor | None) -> TokenEvents:
    return TokenEvents(
        torch.zeros(tokens, dtype=torch.int64, device=device),
        torch.ones(1, dtype=torch.bool, device=device),
        torch.zeros(1, device=device),
        fixed_N,
    )
