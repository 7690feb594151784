"""The plan of a request in the API server: its videos and their token counts, for its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from metok_vllm.config.methods import METOK
from metok_vllm.plan.prompt import PromptPlan, Pruning


@dataclass(frozen=True)
class VideoPlan:
    """One video of a request. `key` names its encoder output in every cache; times in seconds."""

    key: str
    num_frames: int
    timestamps_s: tuple[float, ...]
    duration_s: float
    dense_tokens: int
    encoded_tokens: int
    start: int = 0  # position of its first token in the prompt
    pruning: Pruning | None = None


@dataclass(frozen=True)
class RequestPlan:
    """METok's settings and videos of one request.

    `stages` is empty if METok is off for the request, or if it uses another `rule`; `focus` is None
    then, because no question selects. `core` are the tokens that later prompts may go on from.
    """

    preset: str
    stages: tuple[int, ...]
    query_source: str
    videos: tuple[VideoPlan, ...]
    rule: str = METOK
    focus: str | None = None
    core: int | None = None

    @property
    def name(self) -> str:
        """The setting of the request: METok's preset, another method's name, or off."""
        if self.rule != METOK:
            return self.rule
        return self.preset if self.stages else "off"

    @property
    def dense_tokens(self) -> int:
        """Visual tokens of the model's own input."""
        return sum(video.dense_tokens for video in self.videos)

    @property
    def encoded_tokens(self) -> int:
        """Visual tokens that the decoder gets."""
        return sum(video.encoded_tokens for video in self.videos)

    def moved(self, starts: Iterable[int]) -> RequestPlan:
        """The same plan with the videos at other positions of the prompt."""
        placed = zip(self.videos, starts, strict=True)
        videos = tuple(replace(v, start=int(at)) for v, at in placed)
        core = self.core
        if core is not None:
            core += videos[-1].start - self.videos[-1].start
        return replace(self, videos=videos, core=core)

    def prompt_plan(self, prompt_tokens: int, block_size: int = 1) -> PromptPlan | None:
        """What stages 2 and 3 do to the prompt, with KV blocks of `block_size`; None: nothing."""
        videos = [
            (video.key, video.start, video.encoded_tokens, video.pruning)
            for video in self.videos
            if video.pruning is not None
        ]
        return PromptPlan.of(prompt_tokens, videos, self.core, block_size)
