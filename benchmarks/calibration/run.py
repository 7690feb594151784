"""A whole calibration: samples, curves, and the cheapest setting within each budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metok_vllm.benchmarks.calibration.asks import Ask
from metok_vllm.benchmarks.calibration.costs import Costs
from metok_vllm.benchmarks.calibration.curves import Curves, measure_curves
from metok_vllm.benchmarks.calibration.divergence import Divergence
from metok_vllm.benchmarks.calibration.measure import Meter, Say, take_samples
from metok_vllm.benchmarks.calibration.model import CalibratedModel
from metok_vllm.benchmarks.calibration.search import Choice, Search, share_saved
from metok_vllm.config import METokConfig
from metok_vllm.layers import StageLayout

KEEP_RATIOS = (0.5, 0.6, 0.76, 0.9)
DECODE_KEEPS = (0.0, 0.1, 0.25, 0.5, 1.0)
MOST_GROUPS = 12  # the paper's (3, 10, 19) of 28 layers makes 10


@dataclass(frozen=True)
class Calibration:
    """What was found. `choices` has an entry a budget, None where nothing that was tried holds."""

    config: METokConfig
    budgets: Mapping[str, float]
    curves: Curves
    choices: Mapping[str, Choice | None]
    dense: Costs
    stage1_alone: Divergence
    prompts: int
    answer_tokens: int
    num_layers: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: curves and every budget's choice."""
        return {
            "num_layers": self.num_layers,
            "prompts": self.prompts,
            "answer_tokens": self.answer_tokens,
            "dense": {"prefill_flops": self.dense.prefill_flops, "kv_bytes": self.dense.kv_bytes},
            "stage1_alone": self.stage1_alone.to_dict(),
            "presets": {name: self._choice(name) for name in self.budgets},
            "curves": self.curves.to_dict(),
        }

    def served_stages(self, name: str) -> list[int]:
        """The stages of this budget's configuration: 1 only where its measure is within, too."""
        choice = self.choices[name]
        assert choice is not None
        behind = choice.with_stage1
        within = behind is not None and behind[0].worst <= self.budgets[name]
        return [1, 2, 3] if within else [2, 3]

    def least_layer(self, name: str) -> int | None:
        """The least layer from which all visual tokens can go within this budget."""
        return self.curves.least_layer(self.budgets[name])

    def _choice(self, name: str) -> dict[str, Any]:
        choice, budget = self.choices[name], self.budgets[name]
        found: dict[str, Any] = {"budget": budget, "least_drop_layer": self.least_layer(name)}
        if choice is None:
            return {**found, "config": None}
        stage1 = None
        if choice.with_stage1 is not None:
            moved, costs = choice.with_stage1
            stage1 = {**moved.to_dict(), "saved": share_saved(self.dense, costs)}
        return {
            **found,
            "config": config_values(self, name),
            "divergence": choice.divergence.to_dict(),
            "saved": share_saved(self.dense, choice.costs),
            "cache_groups": choice.layout.num_groups,
            "parts": {part: moved.to_dict() for part, moved in choice.parts.items()},
            "with_stage1": stage1,
        }


def calibrate(
    model: CalibratedModel,
    asks: Sequence[Ask],
    budgets: Mapping[str, float],
    frames: int,
    tokens: int,
    say: Say,
    keep_ratios: Sequence[float] = KEEP_RATIOS,
    decode_keeps: Sequence[float] = DECODE_KEEPS,
    most_groups: int = MOST_GROUPS,
) -> Calibration:
    """Measure and search. `say` is told what is being done.

    Raises ConfigError for a decoder that is too shallow, MediaError for a video that cannot be
    read.
    """
    num_layers = model.decoder.num_layers
    StageLayout.of(None, num_layers)  # refuses before the hours, not after
    samples = take_samples(model, asks, frames, tokens, say)
    meter = Meter(model, samples, say)
    curves = measure_curves(meter, keep_ratios)
    search = Search(meter, curves, keep_ratios, decode_keeps, most_groups)
    choices = {name: search.find(budget, with_stage1=True) for name, budget in budgets.items()}
    return Calibration(
        config=model.config,
        budgets=budgets,
        curves=curves,
        choices=choices,
        dense=search.dense_cost(),
        stage1_alone=meter.encoding_alone(),
        prompts=len(samples),
        answer_tokens=sum(len(sample.answer) for sample in samples),
        num_layers=num_layers,
    )


# What decides which tokens are chosen is written out: a preset's name must not bring its own.
SELECTION = ("num_events", "key_event_ratio", "key_frames_per_event", "strides")


def config_values(calibration: Calibration, name: str) -> dict[str, Any]:
    """The METokConfig fields of one budget's choice, for YAML and JSON."""
    choice = calibration.choices[name]
    assert choice is not None
    config = calibration.config.to_dict()
    values = {field: config[field] for field in SELECTION}
    if config["alignment_model"] is not None:
        values |= {field: config[field] for field in ("alignment_model", "alignment_mode")}
    return {
        "stages": calibration.served_stages(name),
        "pruning_layers": list(choice.setting.boundaries),
        "keep_ratio": choice.setting.keep_ratio,
        "decode_keep": choice.setting.decode_keep,
        **values,
    }
