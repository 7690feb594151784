"""A calibration: samples, curves, and the cheapest setting within each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from metok_vllm.benchmarks.calibration.costs import Costs
from metok_vllm.benchmarks.calibration.curves import Curves, measure_curves
from metok_vllm.benchmarks.calibration.kl_to_dense import Divergence
from metok_vllm.benchmarks.calibration.measure import (
    HeldOut,
    Measured,
    Meter,
    Progress,
    Sample,
    measure_held_out,
    take_samples,
)
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.prompts import hold_out
from metok_vllm.benchmarks.calibration.search import Choice, Search, share_saved
from metok_vllm.benchmarks.calibration.setting import Setting
from metok_vllm.benchmarks.questions.prompts import VideoQuestion
from metok_vllm.config import METokConfig
from metok_vllm.plan.layers import StageLayout

KEEP_RATIOS = (0.5, 0.6, 0.76, 0.9)
DECODE_KEEPS = (0.0, 0.1, 0.25, 0.5, 1.0)
MOST_GROUPS = 12  # the paper's boundaries (3, 10, 19) of 28 layers make 10
# Written out in every configuration, so that a preset's name does not bring its own values.
SELECTION = ("num_events", "key_event_ratio", "key_frames_per_event", "strides", "reduce")


@dataclass(frozen=True)
class Calibration:
    """The result. `choices` has an entry a budget, None if no attempt was within it.

    A server has one layout for all requests. `served_presets` are settings for the budgets on the
    layout and stages of the served choice; a budget without one is left out. `held_out` is None
    with a single video. `prompts` counts those of the search.
    """

    config: METokConfig
    budgets: Mapping[str, float]
    curves: Curves
    choices: Mapping[str, Choice | None]
    dense: Costs
    stage1_alone: Divergence
    prompts: int
    answer_tokens: int
    num_layers: int
    served_presets: Mapping[str, Measured] = field(default_factory=dict)
    held_out: HeldOut | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: curves and every budget's choice."""
        held = self.held_out
        return {
            "num_layers": self.num_layers,
            "prompts": self.prompts,
            "answer_tokens": self.answer_tokens,
            "dense": {"prefill_flops": self.dense.prefill_flops, "kv_bytes": self.dense.kv_bytes},
            "stage1_alone": asdict(self.stage1_alone),
            "presets": {name: self._choice(name) for name in self.budgets},
            "held_out": None if held is None else held.to_dict(),
            "beside": {
                name: {
                    "config": setting_values(self, found.setting),
                    **found.to_dict(),
                    "held_out": None if held is None else held.served_presets[name].to_dict(),
                }
                for name, found in self.served_presets.items()
            },
            "curves": self.curves.to_dict(),
        }

    def served_stages(self, name: str) -> list[int]:
        """The stages of this budget's configuration; stage 1 only if that is within the budget."""
        choice = self.choices[name]
        assert choice is not None
        return choice.stages(self.budgets[name])

    def least_layer(self, name: str) -> int | None:
        """The least layer from which all visual tokens can be dropped within this budget."""
        return self.curves.least_layer(self.budgets[name])

    def _choice(self, name: str) -> dict[str, Any]:
        choice, budget = self.choices[name], self.budgets[name]
        found: dict[str, Any] = {"budget": budget, "least_drop_layer": self.least_layer(name)}
        if choice is None:
            return {**found, "config": None}
        moved, costs = choice.with_stage1
        return {
            **found,
            "config": config_values(self, name),
            "divergence": asdict(choice.divergence),
            "saved": share_saved(self.dense, choice.costs),
            "cache_groups": choice.layout.num_groups,
            "parts": {part: asdict(moved) for part, moved in choice.parts.items()},
            "with_stage1": {**asdict(moved), "saved": share_saved(self.dense, costs)},
            "held_out": None if self.held_out is None else self.held_out.choices[name].to_dict(),
        }


def calibrate(
    model: CalibratedModel,
    questions: Sequence[VideoQuestion],
    budgets: Mapping[str, float],
    tokens: int,
    progress: Progress,
    keep_ratios: Sequence[float] = KEEP_RATIOS,
    decode_keeps: Sequence[float] = DECODE_KEEPS,
    most_groups: int = MOST_GROUPS,
    served: str | None = None,
) -> Calibration:
    """Search on every second video, then measure the choices on the others.

    Dense answers have at most `tokens` tokens. `served` names the budget whose boundaries are
    served; the other budgets get a setting with the same boundaries. Raises ConfigError for a
    decoder with too few layers and for a model whose numbers overflow, MediaError for an unreadable
    video.
    """
    num_layers = model.decoder.num_layers
    StageLayout.of(None, num_layers)  # refuses a shallow decoder before hours of measuring
    held_out_videos = hold_out(questions)
    all_samples = take_samples(model, questions, tokens, progress)
    samples: list[Sample] = []
    held_out: list[Sample] = []
    for question, sample in zip(questions, all_samples, strict=True):
        (held_out if question.video in held_out_videos else samples).append(sample)
    meter = Meter(model, samples, progress)
    curves = measure_curves(meter, keep_ratios)
    search = Search(meter, curves, keep_ratios, decode_keeps, most_groups)
    choices = {name: search.find(budget) for name, budget in budgets.items()}
    served_presets: dict[str, Measured] = {}
    if served is not None and (chosen := choices[served]) is not None:
        served_presets = _served_presets(search, chosen, served, budgets)
    settings = {
        name: (choice.setting, choice.stages(budgets[name]))
        for name, choice in choices.items()
        if choice is not None
    }
    judge = Meter(model, held_out, progress)
    return Calibration(
        config=model.config,
        budgets=budgets,
        curves=curves,
        choices=choices,
        dense=search.dense_cost(),
        stage1_alone=meter.stage1_alone(),
        prompts=len(samples),
        answer_tokens=sum(len(sample.answer) for sample in samples),
        num_layers=num_layers,
        served_presets=served_presets,
        held_out=measure_held_out(judge, len(held_out_videos), settings, served_presets)
        if held_out
        else None,
    )


def _served_presets(
    search: Search, chosen: Choice, served: str, budgets: Mapping[str, float]
) -> dict[str, Measured]:
    """A setting for each budget with the boundaries and stages of the served choice."""
    stages = chosen.stages(budgets[served])
    found = {
        name: chosen.setting if name == served else search.find_at(chosen.layout, budget, stages)
        for name, budget in budgets.items()
    }
    return {
        name: search.meter.measured(setting, stages, "presets")
        for name, setting in found.items()
        if setting is not None
    }


def config_values(calibration: Calibration, name: str) -> dict[str, Any]:
    """The METokConfig fields of one budget's choice, for YAML and JSON."""
    choice = calibration.choices[name]
    assert choice is not None
    config = calibration.config.to_dict()
    towers = {}
    if config["alignment_model"] is not None:
        towers = {name: config[name] for name in ("alignment_model", "alignment_mode")}
    return {
        "stages": calibration.served_stages(name),
        "pruning_layers": list(choice.setting.boundaries),
        **setting_values(calibration, choice.setting),
        **towers,
    }


def setting_values(calibration: Calibration, setting: Setting) -> dict[str, Any]:
    """The fields of a setting that a request may change."""
    config = calibration.config.to_dict()
    return {
        "keep_ratio": setting.keep_ratio,
        "decode_keep": setting.decode_keep,
        **{name: config[name] for name in SELECTION},
    }
