"""`metok calibrate MODEL --videos FOLDER`: find the layers at which a model can lose visual tokens.

Writes a configuration for `metok serve --metok-config`. Needs no labels.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metok_vllm.benchmarks.commands.calibrate_options import (
    BUDGETS,
    STDOUT,
    add_arguments,
    name_model,
)
from metok_vllm.config import METokConfig
from metok_vllm.console import CommandError, complain, out, progress, write_json

if TYPE_CHECKING:
    from metok_vllm.benchmarks.calibration.run import Calibration

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Measure, search, write. Raises MetokError or CommandError for a mistake of the user."""
    budgets = _budgets(arguments)
    name_model(arguments)
    _check(arguments)
    from metok_vllm.benchmarks.calibration.model import CalibratedModel
    from metok_vllm.benchmarks.calibration.prompts import find_questions
    from metok_vllm.benchmarks.calibration.run import MOST_GROUPS, calibrate
    from metok_vllm.hf_loading import model_family

    a = arguments
    config = METokConfig.load(
        {name: getattr(a, name) for name in ("alignment_model", "alignment_mode")},
        config_file=a.metok_config,
        family=model_family(a.model),
    )
    questions = find_questions(a.videos, a.questions, a.num_videos, a.questions_per_video, a.frames)
    device = _device(a.device)
    dtype = a.dtype or ("float32" if device == "cpu" else "bfloat16")
    with progress() as report:
        report("loading the model")
        model = CalibratedModel.load(a.model, config, device, dtype)
        groups = a.max_groups or MOST_GROUPS
        found = calibrate(
            model,
            questions,
            budgets,
            a.tokens,
            report,
            most_groups=groups,
            served=a.preset_name,
        )
    return _report(found, a, {"device": device, "dtype": dtype, "max_groups": groups})


def _report(found: Calibration, a: argparse.Namespace, more: dict[str, Any]) -> int:
    from metok_vllm.benchmarks.calibration.output import record
    from metok_vllm.benchmarks.environment import environment

    recorded = ("frames", "tokens", "num_videos", "questions_per_video", "preset_name")
    configuration = {"model": Path(a.model).name, **{name: getattr(a, name) for name in recorded}}
    result = record(found, environment(), {**configuration, **more})
    # Printed before any file is written, since the measurement may have taken hours.
    if a.json == STDOUT:
        write_json(result)
    else:
        _print(found, result)
    chosen = found.choices[a.preset_name]
    written = _write(found, result, a)
    if found.held_out is None:
        complain("there is one video only: nothing is held out, the figures are the search's own")
    else:
        for sentence in found.held_out.over_budget(found.budgets):
            complain(sentence)
    if chosen is None:
        complain(
            f"no measured setting is within {found.budgets[a.preset_name]:g} nats: "
            f"{a.out} is not written. Allow more with --divergence"
        )
        return 1
    if found.served_stages(a.preset_name) == [2, 3]:
        complain("stage 1 exceeds the budget and is left out of the configuration")
    return 0 if written else 1


def _print(found: Calibration, result: dict[str, Any]) -> None:
    from metok_vllm.benchmarks.calibration.report import choices_table, parts_table

    console = out()
    console.print(choices_table(result))
    console.print(parts_table(result))
    for name in found.budgets:
        layer = found.least_layer(name)
        layers = "from no layer on" if layer is None else f"from layer {layer} on"
        console.print(f"{name}: all visual tokens can go {layers} of {found.num_layers}")


def _write(found: Calibration, result: dict[str, Any], a: argparse.Namespace) -> bool:
    """Write every requested file that can be written. Returns whether all of them could."""
    from metok_vllm.benchmarks.calibration.output import write_yaml
    from metok_vllm.benchmarks.calibration.report import draw_chart
    from metok_vllm.benchmarks.throughput.charts import ChartError

    outputs: list[tuple[Path, Callable[[], object]]] = []
    if found.choices[a.preset_name] is not None:
        outputs.append((a.out, partial(write_yaml, a.out, found, a.preset_name)))
    if a.json not in (None, STDOUT):
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        outputs.append((Path(a.json), partial(Path(a.json).write_text, text)))
    if a.chart is not None:
        outputs.append((a.chart, partial(draw_chart, result, a.chart)))
    written, complete = [], True
    for path, write in outputs:
        try:
            write()
        except ChartError as error:
            complain(f"no chart: {error}")
        except (OSError, ValueError) as error:
            complain(f"cannot write {path}: {error}")
            complete = False
        else:
            written.append(str(path))
    if written and a.json != STDOUT:
        out().print(f"written: {', '.join(written)}", markup=False)
    return complete


def _budgets(arguments: argparse.Namespace) -> dict[str, float]:
    given: list[str] | None = arguments.divergence
    if given is None:
        budgets = dict(BUDGETS)
    elif len(given) == 1 and "=" not in given[0]:
        budgets = {arguments.preset_name: _nats(given[0], given[0])}
    else:
        budgets = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not name or not equals:
                raise CommandError(f"--divergence takes NATS or NAME=NATS ..., got {text!r}", 2)
            budgets[name] = _nats(value, text)
    if arguments.preset_name not in budgets:
        raise CommandError(
            f"--preset-name must be one of {', '.join(budgets)}, got {arguments.preset_name!r}", 2
        )
    return budgets


def _nats(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise CommandError(f"--divergence must be 0 or more nats, got {text!r}", 2)
    return number


def _check(a: argparse.Namespace) -> None:
    from metok_vllm.benchmarks.calibration.report import SUFFIXES
    from metok_vllm.video import MediaLimits

    most = MediaLimits.from_env().max_frames
    if not 1 <= a.frames <= most:
        raise CommandError(f"--frames must be between 1 and {most}, got {a.frames}", 2)
    for name in ("tokens", "num_videos", "questions_per_video", "max_groups"):
        value = getattr(a, name)
        if value is not None and value < 1:
            raise CommandError(f"--{name.replace('_', '-')} must be 1 or more, got {value}", 2)
    places = [a.out, a.chart, None if a.json in (None, STDOUT) else Path(a.json)]
    for place in places:
        if place is not None and not place.parent.is_dir():
            raise CommandError(f"no such folder: {place.parent}", 2)
        if place is not None and place.is_dir():
            raise CommandError(f"must be a file, but is a folder: {place}", 2)
    if a.chart is not None and a.chart.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise CommandError(f"--chart must end in one of {known}, got {str(a.chart)!r}", 2)


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {wanted} cannot be used: {reason}", 2) from error
    return wanted
