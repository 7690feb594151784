"""`python -m metok_vllm.benchmarks.quality.budget_effect`: the accuracy cost of fixed token counts.

A server needs a prompt's length before it decodes the video, so METok here distributes fixed
totals (docs/metok.md). The paper's own counts depend on content, which no engine can lay out. Both
run in Hugging Face transformers on the same questions.

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

from metok_vllm.benchmarks.calibration.llava_videos import LlavaVideos
from metok_vllm.benchmarks.calibration.model import KEY, CalibratedModel
from metok_vllm.benchmarks.calibration.passes import run_dense, run_pruned
from metok_vllm.benchmarks.calibration.setting import VIDEO, Prompt
from metok_vllm.benchmarks.environment import environment, record_head
from metok_vllm.benchmarks.questions.bootstrap import Draws
from metok_vllm.benchmarks.questions.prompts import VideoQuestion, read_folder
from metok_vllm.config import METokConfig
from metok_vllm.errors import ConfigError, MetokError
from metok_vllm.kernels.adaptive_pool import adaptive_pool
from metok_vllm.plan.prompt import PromptPlan, Pruning
from metok_vllm.pruning import TokenEvents
from metok_vllm.video import MediaLimits, VideoFrames, read_video

SCHEMA = 1
RULES = ("budgeted", "unbudgeted")


@dataclass(frozen=True)
class Outcome:
    """One question under one rule: the correctness and the tokens that entered the decoder."""

    question: VideoQuestion
    right: bool
    tokens: int


@torch.inference_mode()
def answer(
    model: CalibratedModel, question: VideoQuestion, frames: VideoFrames, rule: str
) -> Outcome:
    """Run METok by a rule of RULES, with the right answer teacher-forced after the prompt.

    Greedy decoding gives that answer exactly if each of its tokens is the most likely next one.
    """
    assert question.answer is not None
    assert model.config.pruning_layers is not None
    # The server's encoder finds the events under both rules.
    prompt = model.prompt(frames, question.question, model.config.stages)
    share = prompt.video.key_share(model.config)
    if rule == "unbudgeted":
        prompt = unbudgeted(model, frames, question.question)
        share = true_key_share(prompt.events)
    video = (VIDEO, prompt.start, prompt.tokens, Pruning.of(model.config, share))
    plan = PromptPlan.of(len(prompt), [video])
    assert plan is not None, "stages 2 and 3 are on"
    expected = model.processor.tokenizer(question.answer)["input_ids"]
    dense = run_dense(model.decoder, prompt, expected)
    (logprobs_SV,) = run_pruned(model.decoder, prompt, dense, model.config.pruning_layers, [plan])
    *tokens, last = logprobs_SV.argmax(-1).tolist()
    return Outcome(question, tokens == expected and last in model.ends, prompt.tokens)


def unbudgeted(model: CalibratedModel, frames: VideoFrames, question: str) -> Prompt:
    """The prompt with every frame at the paper's own stride, by the last prompt's events."""
    given = model.videos.read(frames)
    video = given.layout
    events = model.encoder.events.entries[KEY].events
    tokens_ND, event_N = adaptive_pool(
        model.videos.features(given.pixels, video),
        events.natural_T,
        events.event_T,
        model.videos.newline(),
        video.grid,
        model.config.strides,
    )
    token_events = TokenEvents(event_N, events.key_E, events.event_relevance_E)
    return model.prompt_of(question, tokens_ND, token_events, video, model.config.stages)


def true_key_share(events: TokenEvents) -> Fraction:
    """The share of tokens in key events. With it, stage 2's totals equal the paper's."""
    of_key_N = events.key_E[events.event_N]
    return Fraction(int(of_key_N.sum()), len(of_key_N))


def compare(model: CalibratedModel, questions: Sequence[VideoQuestion]) -> dict[str, list[Outcome]]:
    """Every question under every rule; each video is decoded once."""
    limits = MediaLimits.from_env()
    found: dict[str, list[Outcome]] = {rule: [] for rule in RULES}
    for video, group in groupby(questions, key=lambda question: question.video):
        of_video = list(group)
        frames = read_video(video.read_bytes(), of_video[0].frames, limits=limits)
        for question in of_video:
            for rule in RULES:
                found[rule].append(answer(model, question, frames, rule))
    return found


def rows(found: dict[str, list[Outcome]]) -> list[dict[str, Any]]:
    """Accuracy, its difference from the first rule, and tokens, with intervals over videos."""
    first = found[RULES[0]]
    draws = Draws([one.question.name for one in first])
    made = []
    for rule, outcomes in found.items():
        videos = [one.question.name for one in outcomes]
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
    parser.add_argument("--limit", type=int, default=200, help="questions to use")
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
    """The result, JSON-ready. Raises MetokError for an unusable model, file or folder."""
    config = METokConfig.load(config_file=chosen.metok_config)
    if config.alignment_model is None:
        towers = Path(chosen.model) / "alignment"
        config = config.updated({"alignment_model": str(towers)} if towers.is_dir() else {})
    if config.pruning_layers is None or config.running_stages != (1, 2, 3):
        raise ConfigError("all stages and pruning_layers are needed", "pruning_layers")
    questions = read_folder(chosen.folder, chosen.frames, chosen.limit)
    if any(question.answer is None for question in questions):
        raise ConfigError("questions.json must have an answer to every question", "questions")
    model = CalibratedModel.load(chosen.model, config)
    if not isinstance(model.videos, LlavaVideos):
        kind = model.model.config.model_type
        raise ConfigError(f"the paper's counts are those of LLaVA-OneVision, got {kind!r}", "model")
    found = compare(model, questions)
    settings = {"frames": chosen.frames, "limit": chosen.limit, "preset": config.preset}
    head = record_head("budget_effect", SCHEMA, environment(), settings)
    return {**head, "rows": rows(found)}


if __name__ == "__main__":
    main()
