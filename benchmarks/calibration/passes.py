"""A prompt and its answer through all layers with nothing dropped: what every curve starts from.

Rows that no setting touches are taken from here, so that dropping tokens from layer k on costs the
layers from k on alone.

Shape suffixes: N prompt tokens, A answer tokens that are read, D hidden, V vocabulary.
"""
# MERGED DOC
# """A prompt and its answer with visual tokens dropped on the way, as METok's stages 2 and 3 do it.
#
# `metok_vllm.pruning.Selection` decides which rows stay, as it does in the engine; here the layers
# are Hugging Face's and the cache is a list of rows.
#
# Shape suffixes: M rows of a stage, A answer tokens read, D hidden, V vocabulary.
# """

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metok_vllm.benchmarks.calibration.decoder import Decoder, Seen
from metok_vllm.benchmarks.calibration.setting import step_of
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.pruning import Selection, TokenEvents


@dataclass(frozen=True)
class Prompt:
    """Embeddings [N, D] with one video's tokens in place from `start` on, and its events.

    `frames` are those of the video, `tokens` its visual tokens, `stages` what it was encoded with.
    """

    embeds_ND: Tensor
    start: int
    tokens: int
    frames: int
    events: TokenEvents
    stages: tuple[int, ...]

    def on(self, device: torch.device) -> Prompt:
        """The same on a device."""
        events = TokenEvents(
            self.events.event_N.to(device),
            self.events.key_E.to(device),
            self.events.relevance_E.to(device),
        )
        return replace(self, embeds_ND=self.embeds_ND.to(device), events=events)

    def on_host(self) -> Prompt:
        """The same on the CPU."""
        return self.on(torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.embeds_ND)

    @property
    def query_rows(self) -> int:
        """Rows whose attention scores the visual tokens: the text after the video."""
        return max(len(self) - self.start - self.tokens, 1)


@dataclass(frozen=True)
class Whole:
    """One dense run. Lists have an entry a layer; of `hidden` and `answer` one more, the result.

    `hidden[l]` [N, D] and `answer[l]` [A, D] enter layer l; `mass[l]` [N] is the question's
    attention in layer l; `seen[l]` are the prompt's keys and values.
    """

    hidden: list[Tensor]
    answer: list[Tensor]
    mass: list[Tensor]
    seen: list[Seen]


def run_whole(decoder: Decoder, prompt: Prompt, read: Sequence[int]) -> Whole:
    """The prompt, then the answer tokens `read` after it, teacher-forced."""
    hidden_ND = prompt.embeds_ND
    at_N = torch.arange(len(prompt), device=decoder.device)
    angles = decoder.angles(hidden_ND, at_N)
    hidden, mass, seen = [hidden_ND], [], []
    for number in range(decoder.num_layers):
        hidden_ND, now = decoder.layer(number, hidden_ND, angles)
        hidden.append(hidden_ND)
        mass.append(now.mass(prompt.query_rows))
        seen.append(now.without_queries())
    return Whole(hidden, _answer(decoder, len(prompt), seen, read), mass, seen)


def logprobs(decoder: Decoder, whole: Whole) -> Tensor:
    """Log-probabilities of the first token and of those after each token read, [1 + A, V]."""
    return decoder.logprobs(torch.cat([whole.hidden[-1][-1:], whole.answer[-1]]))


def greedy_answer(
    decoder: Decoder, prompt: Prompt, most: int, ends: Collection[int]
) -> tuple[list[int], Tensor]:
    """The model's own answer of at most `most` tokens, and its log-probabilities [tokens, V].

    A token of `ends` is the last one.
    """
    whole = run_whole(decoder, prompt, [])
    logprobs_AV = logprobs(decoder, whole)
    tokens = [int(logprobs_AV[-1].argmax())]
    while len(tokens) < most and tokens[-1] not in ends:
        rows = _answer(decoder, len(prompt), whole.seen, tokens)
        last = torch.cat([whole.hidden[-1][-1:], rows[-1]])
        logprobs_AV = decoder.logprobs(last)
        tokens.append(int(logprobs_AV[-1].argmax()))
    return tokens, logprobs_AV


def _answer(
    decoder: Decoder, prompt_tokens: int, seen: Sequence[Seen], read: Sequence[int]
) -> list[Tensor]:
    hidden_AD = decoder.embed(list(read))
    rows = [hidden_AD]
    if not read:
        return rows * (decoder.num_layers + 1)
    angles = answer_angles(decoder, prompt_tokens, hidden_AD)
    for number in range(decoder.num_layers):
        hidden_AD, _ = decoder.layer(number, hidden_AD, angles, seen[number].rows(None))
        rows.append(hidden_AD)
    return rows


def answer_angles(decoder: Decoder, prompt_tokens: int, hidden_AD: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of the tokens read after the prompt: positions go on from its length."""
    at_A = torch.arange(len(hidden_AD), device=decoder.device) + prompt_tokens
    return decoder.angles(hidden_AD, at_A)


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
