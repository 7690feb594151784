"""What a calibration leaves behind: a YAML that `metok serve --metok-config` takes, and a JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from metok_vllm.benchmarks.calibration.run import Calibration, config_values
from metok_vllm.config import METokConfig
from metok_vllm.layers import StageLayout
from metok_vllm.presets import PRESETS

BENCHMARK, SCHEMA = "calibration", 1


def write_yaml(path: Path, calibration: Calibration, name: str) -> METokConfig:
    """Write the choice of the budget `name` and return it as the server will read it.

    The name is the preset's where METok has one called so. Raises OSError.
    """
    values = config_values(calibration, name)
    if name in PRESETS:
        values = {"preset": name, **values}
    choice, budget = calibration.choices[name], calibration.budgets[name]
    assert choice is not None
    moved = choice.divergence
    measured = f"{moved.first:.4g} at the first token, {moved.following:.4g} at the following ones"
    size = f"{calibration.prompts} prompts, {calibration.answer_tokens} answer tokens"
    comments = [
        "Written by `metok calibrate`; start the server with --metok-config and this file.",
        f"Divergence from dense at most {budget:g} nats: measured {measured} (stage 1 off).",
        f"{size}, {calibration.num_layers} decoder layers.",
    ]
    if 1 not in values["stages"]:
        comments.append("Stage 1 is left out: with it the divergence was over the budget.")
    text = "".join(f"# {line}\n" for line in comments)
    text += yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
    path.write_text(text, encoding="utf-8")
    served = METokConfig.load(config_file=path, environ={})
    StageLayout.of(served.pruning_layers, calibration.num_layers)
    return served


def record(
    calibration: Calibration, environment: Mapping[str, Any], configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole calibration, JSON-ready."""
    return {
        "benchmark": BENCHMARK,
        "schema": SCHEMA,
        "environment": dict(environment),
        "configuration": dict(configuration),
        **calibration.to_dict(),
    }
