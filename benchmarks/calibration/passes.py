"""A prompt and its answer through all layers: dense, or pruned as by METok's stages 2 and 3.

The dense run keeps the inputs of every layer, so that pruning from layer k on runs only the layers
from k on. `metok_vllm.pruning.Selection` decides which rows stay, as in the engine.

Shape suffixes: N prompt tokens, M rows of a stage, A answer tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.decoder import QKV, Decoder
from metok_vllm.benchmarks.calibration.setting import Prompt, step_of
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.pruning import Selection


@dataclass(frozen=True)
class DenseRun:
    """One dense run. Lists have an entry a layer; `hidden` and `answer` end with the result.

    `hidden[l]` [N, D] and `answer[l]` [A, D] are the inputs of layer l. `mass[l]` [N] is the
    question's attention in layer l, `qkv[l]` are the prompt's keys and values.
    """

    hidden: list[Tensor]
    answer: list[Tensor]
    mass: list[Tensor]
    qkv: list[QKV]


def run_dense(decoder: Decoder, prompt: Prompt, answer: Sequence[int]) -> DenseRun:
    """The prompt, then the tokens of `answer`, teacher-forced."""
    hidden_ND = prompt.embeds_ND
    row_N = torch.arange(len(prompt), device=decoder.device)
    rotary = decoder.rotary(hidden_ND, prompt.position_XN)
    hidden, mass, qkv = [hidden_ND], [], []
    for number in range(decoder.num_layers):
        hidden_ND, captured = decoder.layer(number, hidden_ND, rotary)
        hidden_ND = prompt.joined(number, hidden_ND, row_N)
        hidden.append(hidden_ND)
        mass.append(captured.mass(prompt.query_rows))
        qkv.append(captured.without_queries())
    return DenseRun(hidden, _answer_inputs(decoder, prompt, qkv, answer), mass, qkv)


def dense_logprobs(decoder: Decoder, dense: DenseRun) -> Tensor:
    """Log-probabilities of the first token and of the token after each answer token, [1 + A, V]."""
    return decoder.logprobs(torch.cat([dense.hidden[-1][-1:], dense.answer[-1]]))


def greedy_answer(
    decoder: Decoder, prompt: Prompt, most: int, ends: Collection[int]
) -> tuple[list[int], Tensor]:
    """The model's own answer of at most `most` tokens, and its log-probabilities [tokens, V].

    A token of `ends` is the last one.
    """
    dense = run_dense(decoder, prompt, [])
    logprobs_AV = dense_logprobs(decoder, dense)
    tokens = [int(logprobs_AV[-1].argmax())]
    while len(tokens) < most and tokens[-1] not in ends:
        answer = _answer_inputs(decoder, prompt, dense.qkv, tokens)
        logprobs_AV = decoder.logprobs(torch.cat([dense.hidden[-1][-1:], answer[-1]]))
        tokens.append(int(logprobs_AV[-1].argmax()))
    return tokens, logprobs_AV


def run_pruned(
    decoder: Decoder,
    prompt: Prompt,
    dense: DenseRun,
    boundaries: tuple[int, int, int],
    plans: Sequence[PromptPlan],
) -> list[Tensor]:
    """Log-probabilities [1 + A, V] under each of `plans`, which share their prefill.

    The plans differ only in the tokens kept for decoding. Layers before the first boundary come
    from `dense`.
    """
    assert len({plan.prefill_dropped for plan in plans}) == 1
    starts = (0, *boundaries, decoder.num_layers)
    selections = [Selection(step_of(p), lambda _: prompt.events, decoder.device) for p in plans]
    hidden_MD = dense.hidden[starts[1]]
    row_M = torch.arange(len(hidden_MD), device=decoder.device)
    # Before layer 0 no visual token has a score; separators are still told from them.
    score_M = dense.mass[starts[1] - 1] if starts[1] else torch.zeros_like(dense.mass[0])
    answers = [dense.answer[starts[1]]] * len(plans)
    answer_rotary = _answer_rotary(decoder, prompt, answers[0])
    for stage in range(1, NUM_STAGES):
        if stage < NUM_STAGES - 1:
            for selection in selections:
                selection.set_scores([score_M] * len(selection.prompts), stage)
        # Every selection narrows its own scores; all of them keep the same rows.
        entered = [selection.enter(stage) for selection in selections]
        index_M = entered[0]
        if index_M is not None:
            hidden_MD, row_M, score_M = hidden_MD[index_M], row_M[index_M], score_M[index_M]
        layers = range(starts[stage], starts[stage + 1])
        if not layers:
            continue
        kept = [
            _kept_for_decode(selection, plan, stage, row_M)
            for selection, plan in zip(selections, plans, strict=True)
        ]
        rotary = decoder.rotary(hidden_MD, prompt.position_XN[:, row_M])
        for number in layers:
            hidden_MD, captured = decoder.layer(number, hidden_MD, rotary)
            hidden_MD = prompt.joined(number, hidden_MD, row_M)
            if len(answers[0]):
                answers = [
                    decoder.layer(number, answer_AD, answer_rotary, captured.rows(kept_M))[0]
                    for answer_AD, kept_M in zip(answers, kept, strict=True)
                ]
        if stage < NUM_STAGES - 2:
            score_M = captured.mass(prompt.query_rows)
    return [decoder.logprobs(torch.cat([hidden_MD[-1:], answer])) for answer in answers]


def _kept_for_decode(
    selection: Selection, plan: PromptPlan, stage: int, row_M: Tensor
) -> Tensor | None:
    """Rows of the stage that decoding attends to; None for all."""
    if not plan.evicts:
        return None
    text_M = (row_M < plan.first_visual) | (row_M >= plan.last_visual)
    rows_M = text_M.nonzero()[:, 0]
    visual_M = selection.kept_for_decode(stage, [prompt for prompt, _ in selection.prompts])
    return rows_M if visual_M is None else torch.cat([rows_M, visual_M]).sort().values


def _answer_inputs(
    decoder: Decoder, prompt: Prompt, qkv: Sequence[QKV], answer: Sequence[int]
) -> list[Tensor]:
    hidden_AD = decoder.embed(list(answer))
    inputs = [hidden_AD]
    if not answer:
        return inputs * (decoder.num_layers + 1)
    rotary = _answer_rotary(decoder, prompt, hidden_AD)
    for number in range(decoder.num_layers):
        hidden_AD, _ = decoder.layer(number, hidden_AD, rotary, qkv[number].rows(None))
        inputs.append(hidden_AD)
    return inputs


def _answer_rotary(decoder: Decoder, prompt: Prompt, hidden_AD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of the answer tokens, whose positions follow the prompt's."""
    position_A = torch.arange(len(hidden_AD), device=decoder.device) + prompt.next_position
    return decoder.rotary(hidden_AD, position_A.expand(len(prompt.position_XN), -1))
