"""`python -m metok_vllm.benchmarks.quality.budget_effect`: what fixing the counts in advance costs.

A server has to know a prompt's visual tokens before it looks at the video, so METok here shares
out fixed totals (docs/metok.md). In the paper's rule content decides how many. No engine can lay
out a prompt by that, so both run in Hugging Face transformers, on the same questions.

Shape suffixes: T frames, P patches, D features, E events, N tokens, S steps, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metok_vllm.benchmarks.calibration.model import KEY, CalibratedModel
from metok_vllm.benchmarks.calibration.passes import Prompt, run_pruned, run_whole
from metok_vllm.benchmarks.calibration.setting import VIDEO
from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.questions.bootstrap import Draws
from metok_vllm.benchmarks.questions.prompts import Asked, read_folder
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError, MetokError
from metok_vllm.kernels.adaptive_pool import adaptive_pool
from metok_vllm.plan.prompt import PromptPlan, Pruning, key_share
from metok_vllm.pruning import TokenEvents
from metok_vllm.video import MediaLimits, read_video

SCHEMA = 1
RULES = ("budgeted", "unbudgeted")


@dataclass(frozen=True)
class Outcome:
    """One question under one rule: answered rightly or not, and tokens that entered the decoder."""

    asked: Asked
    right: bool
    tokens: int


@torch.inference_mode()
def answer(
    model: CalibratedModel, asked: Asked, frames_THWC: NDArray[np.uint8], rule: str
) -> Outcome:
    """Run METok by a rule of RULES, with the right answer read after the prompt.

    Greedy decoding gives that answer exactly when each of its tokens is the likeliest next one.
    """
    assert asked.answer is not None
    assert model.config.pruning_layers is not None
    # The server's own encoder decides about events either way.
    prompt = model.prompt(frames_THWC, asked.question, model.config.stages)
    share = key_share(prompt.frames, model.grid, model.config)
    if rule == "unbudgeted":
        prompt = unbudgeted(model, frames_THWC, asked.question)
        share = true_key_share(prompt.events)
    video = (VIDEO, prompt.start, prompt.tokens, Pruning.of(model.config, share))
    plan = PromptPlan.of(len(prompt), [video], step_tokens=len(prompt))
    assert plan is not None, "stages 2 and 3 are on"
    wanted = model.processor.tokenizer(asked.answer)["input_ids"]
    whole = run_whole(model.decoder, prompt, wanted)
    (logprobs_SV,) = run_pruned(model.decoder, prompt, whole, model.config.pruning_layers, [plan])
    *said, last = logprobs_SV.argmax(-1).tolist()
    return Outcome(asked, said == wanted and last in model.ends, prompt.tokens)


def unbudgeted(model: CalibratedModel, frames_THWC: NDArray[np.uint8], question: str) -> Prompt:
    """The prompt with every frame at the paper's own stride, as the last `model.prompt` saw it."""
    events = model.encoder.remembered[KEY].events
    tokens_ND, event_N = adaptive_pool(
        model.features(frames_THWC),
        events.natural_T,
        events.event_T,
        model.model.model.image_newline,
        model.grid,
        model.config.strides,
    )
    known = TokenEvents(event_N, events.key_E, events.event_relevance_E)
    return model.prompt_of(question, tokens_ND, known, len(frames_THWC), model.config.stages)


def true_key_share(events: TokenEvents) -> Fraction:
    """Share of the tokens that stand in key events: with it, stage 2's totals are the paper's."""
    of_key_N = events.key_E[events.event_N]
    return Fraction(int(of_key_N.sum()), len(of_key_N))


def compare(model: CalibratedModel, asked: Sequence[Asked]) -> dict[str, list[Outcome]]:
    """Every question under every rule; a video is read once."""
    limits = MediaLimits.from_env()
    found: dict[str, list[Outcome]] = {rule: [] for rule in RULES}
    for video, questions in groupby(asked, key=lambda one: one.video):
        of_video = list(questions)
        frames = read_video(video.read_bytes(), of_video[0].frames, limits=limits).frames_THWC
        for one in of_video:
            for rule in RULES:
                found[rule].append(answer(model, one, frames, rule))
    return found


def rows(found: dict[str, list[Outcome]]) -> list[dict[str, Any]]:
    """Accuracy, its difference to the first rule and mean tokens, with intervals over videos."""
    first = found[RULES[0]]
    draws = Draws([one.asked.name for one in first])
    made = []
    for rule, outcomes in found.items():
        videos = [one.asked.name for one in outcomes]
        right = [float(one.right) for one in outcomes]
        moved = [float(o.right) - float(f.right) for o, f in zip(outcomes, first, strict=True)]
        accuracy, difference = draws.estimate(videos, right), draws.estimate(videos, moved)
        assert accuracy is not None
        assert difference is not None
        made.append(
            {
                "rule": rule,
                "questions": len(outcomes),
                "accuracy": accuracy.__dict__,
                "difference": difference.__dict__,
                "tokens": float(np.mean([one.tokens for one in outcomes])),
                "tokens_least": min(one.tokens for one in outcomes),
                "tokens_most": max(one.tokens for one in outcomes),
            }
        )
    return made


def main() -> None:
    """Compare as the arguments say; JSON on standard output, and in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name")
    parser.add_argument("--metok-config", type=Path, required=True, help="YAML with pruning_layers")
    parser.add_argument("--folder", type=Path, required=True, help="videos and questions.json")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--limit", type=int, default=200, help="questions that are asked")
    parser.add_argument("--out", type=Path, help="JSON file")
    chosen = parser.parse_args()
    try:
        record = measure(chosen)
    except (MetokError, OSError) as error:
        parser.error(str(error))
    text = json.dumps(record)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """The result, JSON-ready. Raises MetokError for what cannot be used."""
    config = METokConfig.load(config_file=chosen.metok_config)
    if config.alignment_model is None:
        towers = Path(chosen.model) / "alignment"
        config = config.updated({"alignment_model": str(towers)} if towers.is_dir() else {})
    if config.pruning_layers is None or config.running_stages != (1, 2, 3):
        raise ConfigError("all stages and pruning_layers are needed", "pruning_layers")
    asked = read_folder(chosen.folder, chosen.frames, chosen.limit)
    if any(one.answer is None for one in asked):
        raise ConfigError("questions.json must have an answer to every question", "questions")
    found = compare(CalibratedModel.load(chosen.model, config), asked)
    settings = {"frames": chosen.frames, "limit": chosen.limit, "preset": config.preset}
    head = record_head("budget_effect", SCHEMA, environment(), settings)
    return {**head, "rows": rows(found)}


if __name__ == "__main__":
    main()
