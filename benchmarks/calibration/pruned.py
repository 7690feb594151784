"""A prompt and its answer with visual tokens dropped on the way, as METok's stages 2 and 3 do it.

`metok_vllm.pruning.Selection` decides which rows stay, as it does in the engine; here the layers
are Hugging Face's and the cache is a list of rows.

Shape suffixes: M rows of a stage, A answer tokens read, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.decoder import Decoder
from metok_vllm.benchmarks.calibration.setting import step_of
from metok_vllm.benchmarks.calibration.whole import Prompt, Whole, answer_angles
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.pruning import Selection


def run_pruned(
    decoder: Decoder,
    prompt: Prompt,
    whole: Whole,
    boundaries: tuple[int, int, int],
    plans: Sequence[PromptPlan],
) -> list[Tensor]:
    """Log-probabilities [1 + A, V] under each of `plans`, which differ in what decoding holds.

    They share the prefill. Layers before the first boundary are those of `whole`.
    """
    assert len({plan.prefill_dropped for plan in plans}) == 1
    starts = (0, *boundaries, decoder.num_layers)
    selections = [Selection(step_of(p), lambda _: prompt.events, decoder.device) for p in plans]
    hidden_MD = whole.hidden[starts[1]]
    at_M = torch.arange(len(hidden_MD), device=decoder.device)
    score_M = whole.mass[starts[1] - 1] if starts[1] else None
    answers = [whole.answer[starts[1]]] * len(plans)
    angles = answer_angles(decoder, len(prompt), answers[0])
    for stage in range(1, NUM_STAGES):
        if stage < NUM_STAGES - 1 and score_M is not None:
            for selection in selections:
                selection.rank(stage, [score_M] * len(selection.prompts))
        # Every selection narrows its own scores; all of them keep the same rows.
        entered = [selection.enter(stage) for selection in selections]
        index_M = entered[0]
        if index_M is not None:
            hidden_MD, at_M = hidden_MD[index_M], at_M[index_M]
            score_M = None if score_M is None else score_M[index_M]
        layers = range(starts[stage], starts[stage + 1])
        if not layers:
            continue
        held = [_held(s, p, stage, at_M) for s, p in zip(selections, plans, strict=True)]
        prompt_angles = decoder.angles(hidden_MD, at_M)
        for number in layers:
            hidden_MD, seen = decoder.layer(number, hidden_MD, prompt_angles)
            if len(answers[0]):
                answers = [
                    decoder.layer(number, answer_AD, angles, seen.rows(kept_M))[0]
                    for answer_AD, kept_M in zip(answers, held, strict=True)
                ]
        if stage < NUM_STAGES - 2:
            score_M = seen.mass(prompt.query_rows)
    return [decoder.logprobs(torch.cat([hidden_MD[-1:], answer])) for answer in answers]


def _held(selection: Selection, plan: PromptPlan, stage: int, at_M: Tensor) -> Tensor | None:
    """Rows of the stage that decoding sees; None for all."""
    if not plan.evicts:
        return None
    text_M = (at_M < plan.first_visual) | (at_M >= plan.last_visual)
    rows_M = text_M.nonzero()[:, 0]
    visual_M = selection.kept_for_decode(stage)
    return rows_M if visual_M is None else torch.cat([rows_M, visual_M]).sort().values
