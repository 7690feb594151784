"""Divergence of many settings over all prompts: one dense run a prompt, then each setting.

Only one prompt's dense run is held at a time, so memory does not grow with the number of prompts.
"""
# MERGED DOC
# """What was chosen, on videos that had no part in choosing it.
#
# The least of many noisy figures is too low: the search prefers settings that its own videos happen
# to like. A video that it did not see has no such preference.
# """

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.kl_to_dense import (
    Divergence,
    Moved,
    check_finite,
    divergence,
    moved,
)
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.passes import (
    Prompt,
    greedy_answer,
    logprobs,
    run_pruned,
    run_whole,
)
from metok_vllm.benchmarks.calibration.prompts import Ask
from metok_vllm.benchmarks.calibration.setting import Setting, plan_of
from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, read_video

DENSE, STAGE1 = (2, 3), (1, 2, 3)  # the stages a prompt is encoded for: without stage 1, with it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One prompt in both encodings, and what the dense model answers.

    `logprobs_SV` are those of the tokens of `answer`. Kept on the host.
    """

    dense: Prompt
    stage1: Prompt
    answer: list[int]
    logprobs_SV: Tensor

    def prompt(self, stages: tuple[int, ...]) -> Prompt:
        """The prompt as encoded for these stages."""
        return self.stage1 if 1 in stages else self.dense


@dataclass(frozen=True)
class Measured:
    """What a setting does without stage 1 and behind it, None where it is not served with it."""

    setting: Setting
    without: Divergence
    behind: Divergence | None

    @property
    def worst(self) -> float:
        """What is held against a budget: that of requests with stage 1 and of those without."""
        return max(found.worst for found in (self.without, self.behind) if found is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        behind = None if self.behind is None else self.behind.to_dict()
        return {"divergence": self.without.to_dict(), "with_stage1": behind}


@torch.inference_mode()
def take_samples(
    model: CalibratedModel, asks: Sequence[Ask], frames: int, tokens: int, say: Say
) -> list[Sample]:
    """Every question's prompt and dense answer.

    Raises MediaError naming a file it cannot read, ConfigError where the model's numbers overflow.
    """
    samples = []
    limits = MediaLimits.from_env()
    for number, ask in enumerate(asks, start=1):
        say(f"dense answers: {number} of {len(asks)}")
        try:
            video = read_video(ask.video.read_bytes(), frames, limits=limits)
        except MediaError as error:
            raise MediaError(f"{ask.video.name}: {error}", error.reason) from error
        dense = model.prompt(video.frames_THWC, ask.question, DENSE)
        stage1 = model.prompt(video.frames_THWC, ask.question, STAGE1)
        answer, logprobs_SV = greedy_answer(model.decoder, dense, tokens, model.ends)
        check_finite(logprobs_SV)
        samples.append(Sample(dense.on_host(), stage1.on_host(), answer, logprobs_SV.cpu()))
    return samples


class Meter:
    """Measures settings on all samples and remembers what it measured."""

    def __init__(self, model: CalibratedModel, samples: Sequence[Sample], say: Say) -> None:
        self.model = model
        self.samples = samples
        self.say = say
        self.known: dict[tuple[Setting, tuple[int, ...]], Divergence] = {}

    def measure(
        self, settings: Sequence[Setting], what: str, stages: tuple[int, ...] = DENSE
    ) -> list[Divergence]:
        """The divergence of each setting; `what` is said while it takes time."""
        new = [s for s in dict.fromkeys(settings) if (s, stages) not in self.known]
        if new:
            found = self._run(new, what, stages)
            self.known.update({(s, stages): divergence(found[s]) for s in new})
        return [self.known[setting, stages] for setting in settings]

    def measured(self, setting: Setting, stages: Sequence[int], what: str) -> Measured:
        """A setting as a server with these stages can be asked for it: each request may leave
        stage 1 out."""
        (without,) = self.measure([setting], what)
        behind = self.measure([setting], what, STAGE1)[0] if 1 in stages else None
        return Measured(setting, without, behind)

    @torch.inference_mode()
    def _run(
        self, settings: Sequence[Setting], what: str, stages: tuple[int, ...]
    ) -> dict[Setting, list[Moved]]:
        families: dict[object, list[Setting]] = defaultdict(list)
        for s in settings:
            families[s.boundaries, s.keep_ratio, s.drops].append(s)
        found: dict[Setting, list[Moved]] = {setting: [] for setting in settings}
        for number, sample in enumerate(self.samples, start=1):
            prompt = sample.prompt(stages).on(self.model.decoder.device)
            whole = run_whole(self.model.decoder, prompt, sample.answer[:-1])
            for done, family in enumerate(families.values(), start=1):
                self.say(
                    f"{what}: prompt {number} of {len(self.samples)}, "
                    f"setting {done} of {len(families)}"
                )
                plans = [plan_of(s, prompt, self.model.grid, self.model.config) for s in family]
                boundaries = family[0].boundaries
                outputs = run_pruned(self.model.decoder, prompt, whole, boundaries, plans)
                for setting, logprobs_SV in zip(family, outputs, strict=True):
                    found[setting].append(moved(sample.logprobs_SV, logprobs_SV.cpu()))
        return found

    @torch.inference_mode()
    def encoding_alone(self) -> Divergence:
        """What stage 1 does before any layer drops a token."""
        compared = []
        for number, sample in enumerate(self.samples, start=1):
            self.say(f"stage 1 alone: prompt {number} of {len(self.samples)}")
            prompt = sample.stage1.on(self.model.decoder.device)
            whole = run_whole(self.model.decoder, prompt, sample.answer[:-1])
            output_SV = logprobs(self.model.decoder, whole)
            compared.append(moved(sample.logprobs_SV, output_SV.cpu()))
        return divergence(compared)


@dataclass(frozen=True)
class HeldOut:
    """Settings by the names of their budgets, measured on `prompts` about `videos` held out.

    `choices` are those of each budget, `beside` those with the boundaries that are served.
    """

    videos: int
    prompts: int
    choices: Mapping[str, Measured]
    beside: Mapping[str, Measured]

    def over(self, budgets: Mapping[str, float]) -> list[str]:
        """A sentence for each setting that goes over its budget here."""
        said = []
        for name, found in self.choices.items():
            if found.worst > budgets[name]:
                said.append(_sentence(name, found, budgets[name]))
        for name, found in self.beside.items():
            is_choice = name in self.choices and self.choices[name].setting == found.setting
            if found.worst > budgets[name] and not is_choice:
                said.append(
                    _sentence(f"{name} with the layers that are served", found, budgets[name])
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: how much was held out. The figures stand with the settings."""
        return {"videos": self.videos, "prompts": self.prompts}


def measure_held_out(
    meter: Meter,
    videos: int,
    choices: Mapping[str, tuple[Setting, Sequence[int]]],
    beside: Mapping[str, Measured],
) -> HeldOut:
    """The settings chosen, with the stages they are served with, on the samples of `meter`."""
    what = "held-out videos"
    return HeldOut(
        videos,
        len(meter.samples),
        {
            name: meter.measured(setting, stages, what)
            for name, (setting, stages) in choices.items()
        },
        {
            name: meter.measured(found.setting, DENSE if found.behind is None else STAGE1, what)
            for name, found in beside.items()
        },
    )


def _sentence(name: str, found: Measured, budget: float) -> str:
    return (
        f"{name}: {found.worst:.3g} nats on the held-out videos, over the budget of {budget:g}. "
        "Search more videos (--num-videos), or ask for less than you need (--divergence)"
    )
