"""How one video stands in a prompt: frames, their features, and the tokens between them.

Known on the host before any pixel is processed. A family's file makes one per video; prompts, plans
and packed tokens follow from it. Counts with METok are those of equally long events (`tokens.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import POOL, SELECT
from metok_vllm.errors import ConfigError
from metok_vllm.plan.tokens import (
    FrameBudget,
    exact,
    frame_budget,
    key_event_count,
    key_frame_count,
)

BILINEAR, AVERAGE, AREA = "bilinear", "average", "area"
# Patches a side that become one token of a video's dense input, in all LLaVA models.
DENSE_STRIDE = 2


@dataclass(frozen=True)
class VideoLayout:
    """A video of `frames` frames with `rows` x `columns` features each.

    `frames` are what stage 1 decides about; each is made of `sampled_frames` frames of the video.
    `positions`: rotary positions of the dense video; 0 where each token has one.
    `unit` is the stride in patches that the features already have. `pooling` is the kernel's mode.
    `before` and `after` are text ids in front of and behind each frame's features, empty or one
    tuple a frame. A newline embedding closes the video, and each event, where `closes_events` is
    set, and each row of a frame where `row_newline` is. `reductions` are the values of `reduce`
    that the family has; none of them changes a count.
    """

    frames: int
    rows: int
    columns: int
    unit: int = 1
    pooling: str = BILINEAR
    before: tuple[tuple[int, ...], ...] = ()
    after: tuple[tuple[int, ...], ...] = ()
    closes_events: bool = False
    row_newline: bool = False
    sampled_frames: int = 1
    positions: int = 0
    reductions: tuple[str, ...] = (POOL, SELECT)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's features."""
        return self.rows, self.columns

    @property
    def separators(self) -> int:
        """Text tokens inside the video; they do not depend on content."""
        return sum(map(len, (*self.before, *self.after)))

    @property
    def ends_in_separator(self) -> bool:
        """Whether the video's last token is a separator."""
        return bool(self.after and self.after[-1])

    @property
    def dense_stride(self) -> int:
        """The stride of every frame in the model's own input."""
        return max(self.unit, DENSE_STRIDE)

    def feature_stride(self, stride: int) -> int:
        """A stride in patches as one in features; it must be a multiple of `unit`."""
        assert stride % self.unit == 0, (stride, self.unit)
        return stride // self.unit

    def pooled(self, stride: int) -> tuple[int, int]:
        """Rows and columns of a frame pooled at `stride`, in patches."""
        rows, columns = self.rows * self.unit, self.columns * self.unit
        if self.pooling == AVERAGE:
            return rows // stride, columns // stride
        return -(-rows // stride), -(-columns // stride)

    def frame_features(self, stride: int) -> int:
        """Features of a frame pooled at `stride`, without newlines."""
        rows, columns = self.pooled(stride)
        return rows * columns

    def frame_tokens(self, stride: int) -> int:
        """Tokens of a frame pooled at `stride`, row newlines included."""
        rows, columns = self.pooled(stride)
        return rows * (columns + self.row_newline)

    def at(self, stride: int) -> VideoLayout:
        """The same frames with as many features as pooling at `stride` leaves."""
        rows, columns = self.pooled(stride)
        return replace(self, rows=rows, columns=columns)

    def budget(self, config: METokConfig) -> FrameBudget:
        """How many frames stage 1 gives each stride."""
        return frame_budget(
            self.frames, config.num_events, config.key_event_ratio, config.key_frames_per_event
        )

    def check_reduction(self, reduction: str) -> None:
        """Raise ConfigError for a reduction that the family does not have."""
        if reduction in self.reductions:
            return
        reason = ": a newline ends each row of a frame" if self.row_newline else ""
        raise ConfigError(
            f"metok.reduce {reduction!r} is not available for this model{reason}; it has "
            f"{', '.join(self.reductions)}",
            "reduce",
        )

    def dense_tokens(self) -> int:
        """N0: the model's own input."""
        return (
            self.frames * self.frame_tokens(self.dense_stride)
            + self.separators
            + self.closes_events
        )

    def encoded_tokens(self, config: METokConfig) -> int:
        """N1: tokens after stage 1, separators included."""
        budget = self.budget(config)
        fine, medium, coarse = map(self.frame_tokens, config.strides)
        closing = min(config.num_events, self.frames) if self.closes_events else 0
        return (
            budget.fine * fine
            + budget.medium * medium
            + budget.coarse * coarse
            + self.separators
            + closing
        )

    def kept_features(self, rule_keep: float) -> int:
        """ceil(rule_keep * T * t): dense features that an encoder method keeps."""
        return math.ceil(exact(rule_keep) * self.frames * self.frame_features(self.dense_stride))

    def tokens(self, config: METokConfig) -> int:
        """Tokens under `config`: budgeted with stage 1 or an encoder rule, or dense.

        Encoder rules select features, so rows end nowhere and only the last newline stays.
        """
        if config.encoder_rule:
            kept = self.kept_features(config.rule_keep)
            return kept + self.separators + self.closes_events
        if 1 in config.running_stages:
            return self.encoded_tokens(config)
        return self.dense_tokens()

    def without_ids(self) -> VideoLayout:
        """The same counts with less memory: all separators have the id 0."""
        zeros = {len(ids): (0,) * len(ids) for ids in (*self.before, *self.after)}
        before = tuple(zeros[len(ids)] for ids in self.before)
        return replace(self, before=before, after=tuple(zeros[len(ids)] for ids in self.after))

    def prompt_ids(self, config: METokConfig, token: int) -> list[int]:
        """Token ids that stand for the video under `config`; `token` is its placeholder.

        All features stand in the first frame's place: which frame they belong to is not known yet.
        """
        visual = [token] * (self.tokens(config) - self.separators)
        if not self.before:
            return visual
        ids = [*self.before[0], *visual, *self.after[0]]
        for before, after in zip(self.before[1:], self.after[1:], strict=True):
            ids += [*before, *after]
        return ids

    def dense_ids(self, token: int) -> list[int]:
        """Token ids of the model's own input, for layouts without newlines."""
        assert not self.closes_events
        assert not self.row_newline
        features = [token] * self.frame_features(self.dense_stride)
        if not self.before:
            return features * self.frames
        return [
            token_id
            for before, after in zip(self.before, self.after, strict=True)
            for token_id in (*before, *features, *after)
        ]

    def key_share(self, config: METokConfig) -> Fraction:
        """Share of the tokens in key events, as if its K = min(num_events, T) were equally long.

        Newlines included, separators not. Without stage 1 all frames are alike: it is the share of
        key events.
        """
        K = min(config.num_events, self.frames)
        key_events = key_event_count(K, config.key_event_ratio)
        if 1 not in config.stages or K == 1:
            return Fraction(key_events, K)
        fine, medium, coarse = map(self.frame_tokens, config.strides)
        length = Fraction(self.frames, K)
        finer = min(Fraction(key_frame_count(length, config.key_frames_per_event)), length)
        of_key = finer * fine + (length - finer) * medium + self.closes_events
        of_other = finer * medium + (length - finer) * coarse + self.closes_events
        of_key, of_other = key_events * of_key, (K - key_events) * of_other
        if of_key + of_other == 0:
            return Fraction(key_events, K)
        return Fraction(of_key / (of_key + of_other))
