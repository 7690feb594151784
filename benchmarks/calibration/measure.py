"""Divergence of many settings over all prompts: one dense run a prompt, then each setting.

Only one prompt's dense run is in memory at a time. A search favours settings that fit its own
videos by chance, so the chosen settings are measured again on other videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.kl_to_dense import (
    Divergence,
    PromptDivergence,
    check_finite,
    compare,
    mean_divergence,
)
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.passes import (
    dense_logprobs,
    greedy_answer,
    run_dense,
    run_pruned,
)
from metok_vllm.benchmarks.calibration.setting import Prompt, Setting, plan_of
from metok_vllm.benchmarks.questions.prompts import VideoQuestion
from metok_vllm.errors import MediaError
from metok_vllm.video import MediaLimits, read_video

DENSE, STAGE1 = (2, 3), (1, 2, 3)  # stages of a prompt that is encoded without stage 1, and with it
HOST = torch.device("cpu")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One prompt in both encodings and the dense model's answer, on the host.

    `logprobs_SV` are the dense log-probabilities of the S tokens of `answer`.
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
    """A setting's divergence without stage 1, and with it if the setting is served with it."""

    setting: Setting
    without_stage1: Divergence
    with_stage1: Divergence | None

    @property
    def worst(self) -> float:
        """The divergence to compare with a budget: the larger of both encodings."""
        both = (self.without_stage1, self.with_stage1)
        return max(found.worst for found in both if found is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        with_stage1 = None if self.with_stage1 is None else asdict(self.with_stage1)
        return {"divergence": asdict(self.without_stage1), "with_stage1": with_stage1}


@torch.inference_mode()
def take_samples(
    model: CalibratedModel, questions: Sequence[VideoQuestion], tokens: int, progress: Progress
) -> list[Sample]:
    """The prompt and the dense answer of at most `tokens` tokens for every question.

    Raises MediaError with the file's name, ConfigError if the model's numbers overflow.
    """
    samples = []
    limits = MediaLimits.from_env()
    for number, question in enumerate(questions, start=1):
        progress(f"dense answers: {number} of {len(questions)}")
        try:
            video = read_video(question.video.read_bytes(), question.frames, limits=limits)
            dense, stage1 = (model.prompt(video, question.asked, s) for s in (DENSE, STAGE1))
        except MediaError as error:
            raise MediaError(f"{question.video.name}: {error}", error.reason) from error
        answer, logprobs_SV = greedy_answer(model.decoder, dense, tokens, model.ends)
        check_finite(logprobs_SV)
        samples.append(Sample(dense.to(HOST), stage1.to(HOST), answer, logprobs_SV.cpu()))
    return samples


class Meter:
    """Measures settings on all samples and caches the results."""

    def __init__(
        self, model: CalibratedModel, samples: Sequence[Sample], progress: Progress
    ) -> None:
        self.model = model
        self.samples = samples
        self.progress = progress
        self.results: dict[tuple[Setting, tuple[int, ...]], Divergence] = {}

    def measure(
        self, settings: Sequence[Setting], title: str, stages: tuple[int, ...] = DENSE
    ) -> list[Divergence]:
        """The divergence of each setting. Progress messages start with `title`."""
        new = [s for s in dict.fromkeys(settings) if (s, stages) not in self.results]
        if new:
            found = self._run(new, title, stages)
            self.results.update({(s, stages): mean_divergence(found[s]) for s in new})
        return [self.results[setting, stages] for setting in settings]

    def measured(self, setting: Setting, stages: Sequence[int], title: str) -> Measured:
        """A setting in every encoding that requests to a server with these stages may use."""
        (without,) = self.measure([setting], title)
        with_stage1 = self.measure([setting], title, STAGE1)[0] if 1 in stages else None
        return Measured(setting, without, with_stage1)

    @torch.inference_mode()
    def _run(
        self, settings: Sequence[Setting], title: str, stages: tuple[int, ...]
    ) -> dict[Setting, list[PromptDivergence]]:
        # Settings that differ in `decode_keep` alone share their prefill.
        families: dict[object, list[Setting]] = defaultdict(list)
        for s in settings:
            families[s.boundaries, s.keep_ratio, s.drops].append(s)
        found: dict[Setting, list[PromptDivergence]] = {setting: [] for setting in settings}
        for number, sample in enumerate(self.samples, start=1):
            prompt = sample.prompt(stages).to(self.model.decoder.device)
            dense = run_dense(self.model.decoder, prompt, sample.answer[:-1])
            for done, family in enumerate(families.values(), start=1):
                self.progress(
                    f"{title}: prompt {number} of {len(self.samples)}, "
                    f"setting {done} of {len(families)}"
                )
                plans = [plan_of(s, prompt, self.model.config) for s in family]
                boundaries = family[0].boundaries
                outputs = run_pruned(self.model.decoder, prompt, dense, boundaries, plans)
                for setting, logprobs_SV in zip(family, outputs, strict=True):
                    found[setting].append(compare(sample.logprobs_SV, logprobs_SV.cpu()))
        return found

    @torch.inference_mode()
    def stage1_alone(self) -> Divergence:
        """The divergence of stage 1 without any drop inside the decoder."""
        compared = []
        for number, sample in enumerate(self.samples, start=1):
            self.progress(f"stage 1 alone: prompt {number} of {len(self.samples)}")
            prompt = sample.stage1.to(self.model.decoder.device)
            dense = run_dense(self.model.decoder, prompt, sample.answer[:-1])
            output_SV = dense_logprobs(self.model.decoder, dense)
            compared.append(compare(sample.logprobs_SV, output_SV.cpu()))
        return mean_divergence(compared)


@dataclass(frozen=True)
class HeldOut:
    """Settings by the name of their budget, measured on `prompts` about `videos` held out.

    `choices` are each budget's own, `served_presets` those with the boundaries that are served.
    """

    videos: int
    prompts: int
    choices: Mapping[str, Measured]
    served_presets: Mapping[str, Measured]

    def over_budget(self, budgets: Mapping[str, float]) -> list[str]:
        """A sentence for each setting whose divergence here exceeds its budget."""
        sentences = []
        for name, found in self.choices.items():
            if found.worst > budgets[name]:
                sentences.append(_sentence(name, found, budgets[name]))
        for name, found in self.served_presets.items():
            is_choice = name in self.choices and self.choices[name].setting == found.setting
            if found.worst > budgets[name] and not is_choice:
                label = f"{name} with the layers that are served"
                sentences.append(_sentence(label, found, budgets[name]))
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the numbers of videos and prompts. The figures stand with the settings."""
        return {"videos": self.videos, "prompts": self.prompts}


def measure_held_out(
    meter: Meter,
    videos: int,
    choices: Mapping[str, tuple[Setting, Sequence[int]]],
    served_presets: Mapping[str, Measured],
) -> HeldOut:
    """The chosen settings, with the stages they are served with, on the samples of `meter`."""
    title = "held-out videos"
    return HeldOut(
        videos,
        len(meter.samples),
        {
            name: meter.measured(setting, stages, title)
            for name, (setting, stages) in choices.items()
        },
        {
            name: meter.measured(found.setting, STAGE1 if found.with_stage1 else DENSE, title)
            for name, found in served_presets.items()
        },
    )


def _sentence(name: str, found: Measured, budget: float) -> str:
    return (
        f"{name}: {found.worst:.3g} nats on the held-out videos, over the budget of {budget:g}. "
        "Search more videos (--num-videos), or set a lower budget than you need (--divergence)"
    )
