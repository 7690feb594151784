"""The files of a calibration: a YAML for `metok serve --metok-config`, and a JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metok_vllm.benchmarks.calibration.measure import Measured
from metok_vllm.benchmarks.calibration.run import Calibration, config_values, setting_values
from metok_vllm.benchmarks.environment import record_head
from metok_vllm.config import METokConfig
from metok_vllm.config.presets import OFF, PRESETS
from metok_vllm.plan.layers import StageLayout

BENCHMARK, SCHEMA = "calibration", 1


def write_yaml(path: Path, calibration: Calibration, name: str) -> METokConfig:
    """Write the choice of the budget `name` and return it as the server reads it.

    If METok has a preset of that name, the file defines the presets as well. Raises OSError.
    """
    values = config_values(calibration, name)
    presets = {k: v for k, v in calibration.served_presets.items() if k in PRESETS}
    if name in PRESETS:
        own = {k: setting_values(calibration, v.setting) for k, v in presets.items()}
        values = {"preset": name, **values, "presets": own}
    comments = [
        "Written by `metok calibrate`; start the server with --metok-config and this file.",
        *_choice_comments(calibration, name),
    ]
    if name in PRESETS:
        comments += _preset_comments(calibration, presets)
    text = "".join(f"# {line}\n" for line in comments)
    text += yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    path.write_text(text, encoding="utf-8")
    served = METokConfig.load(config_file=path, environ={})
    StageLayout.of(served.pruning_layers, calibration.num_layers)
    return served


def _choice_comments(calibration: Calibration, name: str) -> list[str]:
    choice, budget = calibration.choices[name], calibration.budgets[name]
    assert choice is not None
    stages, held = calibration.served_stages(name), calibration.held_out
    with_stage1 = choice.with_stage1[0] if 1 in stages else None
    size = f"{calibration.prompts} prompts searched, {calibration.answer_tokens} answer tokens"
    lines = [
        f"Divergence from dense at most {budget:g} nats, at the first token and at the following:",
        f"{_nats(Measured(choice.setting, choice.divergence, with_stage1))}.",
    ]
    if held is None:
        lines.append("Nothing was held out, as there was one video only.")
    else:
        found = held.choices[name]
        verdict = ", which is OVER the budget" if found.worst > budget else ""
        of = f"{held.prompts} prompts of {held.videos} videos"
        lines.append(f"Held out, {of} that the search did not see: {_nats(found)}{verdict}.")
    lines.append(f"{size}, {calibration.num_layers} decoder layers.")
    if 1 not in stages:
        lines.append("Stage 1 is left out: with it the divergence was over the budget.")
    return lines


def _preset_comments(calibration: Calibration, presets: Mapping[str, Measured]) -> list[str]:
    with_stage1 = any(found.with_stage1 is not None for found in presets.values())
    condition = "with stage 1 and without it" if with_stage1 else "without stage 1"
    lines = [f"The presets have the layers above; each is within its budget {condition}:"]
    for name, found in presets.items():
        budget, held = calibration.budgets[name], calibration.held_out
        line = f"  {name} {budget:g}: {_nats(found)}"
        if held is not None:
            verdict = " (OVER)" if held.served_presets[name].worst > budget else ""
            line += f"; held out {_nats(held.served_presets[name])}{verdict}"
        lines.append(line)
    lines += [
        f"  {name}: left out, so that a request for it gets the paper's values, not measured here"
        for name in PRESETS
        if name != OFF and name not in presets
    ]
    return lines


def _nats(found: Measured) -> str:
    """The divergences of both encodings as text."""
    without, with_stage1 = found.without_stage1, found.with_stage1
    text = f"{without.first:.4g} and {without.following:.4g} (stage 1 off)"
    if with_stage1 is not None:
        text += f", {with_stage1.first:.4g} and {with_stage1.following:.4g} (with stage 1)"
    return text


def record(
    calibration: Calibration, environment: Mapping[str, Any], configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """The complete calibration, JSON-ready."""
    return {
        **record_head(BENCHMARK, SCHEMA, environment, configuration),
        **calibration.to_dict(),
    }
