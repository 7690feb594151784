"""One request through stages 2 and 3 of METok, layer by layer: what the engine must reproduce.

Hugging Face's Qwen2 modules with full attention matrices; the list of tokens and the KV cache are
edited in plain loops. Batch of one, nothing of vLLM. Paper: arXiv 2506.02850, sections 3.2, 3.3.

Shapes: N prompt tokens, P tokens present in a layer, D width, H query heads, V vocabulary,
S new tokens. A token's position is its index in the prompt, also after others were dropped; the
rotary embedding of models with M-RoPE has `Positions` in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from tests.reference import pruning
from tests.reference.mrope import Place, Positions


@dataclass(frozen=True)
class LanguageModel:
    """A decoder (embedding table, layers, last norm) and its head, with eager attention."""

    decoder: Any
    lm_head: Any


@dataclass(frozen=True)
class Video:
    """One video of a prompt: where it starts and what stage 1 said of it.

    `event_of` has an entry per token, `key` and `relevance` one per event. `totals` are the tokens
    before and after each pruning layer, planned for as many tokens as `selectable` finds.
    `separators` are its text tokens, which always stay, counted from the video's start.
    """

    start: int
    event_of: Sequence[int]
    key: Sequence[bool]
    relevance: Sequence[float]
    totals: Sequence[int]
    separators: Collection[int] = ()

    @property
    def end(self) -> int:
        return self.start + len(self.event_of)

    def selectable(self, prompt_length: int) -> list[int]:
        """Positions that may be dropped: all but a prompt's last token.

        The first new token is read there, so it counts as text even where it is visual.
        """
        return list(range(self.start, min(self.end, prompt_length - 1)))

    def select(
        self, present: Sequence[int], scores: Sequence[float], entry: int
    ) -> tuple[list[int], float]:
        """Positions among `present` that pruning layer `entry` (0 or 1) keeps, and the margin."""
        event_of = [self.event_of[position - self.start] for position in present]
        of_events = (event_of, self.key, self.relevance)
        fixed = self.separators_in(present)
        total = self.totals[entry + 1]
        selection = pruning.staying(entry, total, scores, *of_events, fixed)
        return [present[index] for index in selection.kept], selection.margin

    def separators_in(self, present: Sequence[int]) -> list[int]:
        """Which of the positions `present` are separators, by their index there."""
        return [i for i, position in enumerate(present) if position - self.start in self.separators]


@dataclass(frozen=True)
class Generated:
    """Greedy tokens with the log-probabilities of the whole vocabulary, and what was kept.

    `kept[stage][video]` are the visual positions that the layers before p0 (stage 0) and those
    from p0, p1 and p2 on ran on in the prefill. `scores[entry][video]` are those of
    `kept[entry][video]` at p0 and p1. `held[layer]` are the prompt positions in the cache when
    decoding starts. `margin` is the smallest of all selections.
    """

    tokens: list[int]
    logprobs_SV: Tensor
    kept: list[list[list[int]]]
    scores: list[list[list[float]]]
    held: list[list[int]]
    margin: float


@torch.no_grad()
def generate(
    model: LanguageModel,
    embeds_ND: Tensor,
    videos: Sequence[Video],
    boundaries: tuple[int, int, int],
    new_tokens: int,
    stages: Collection[int] = (2, 3),
    decode_keep: float = 0.0,
    rotary: Positions | None = None,
    deepstack: Sequence[Tensor] = (),
    core: int | None = None,
    unit: int = 1,
    evict_after: int = 0,
) -> Generated:
    """Answer one prompt, given as embeddings with the visual rows in place.

    Only the rows of the first `core` tokens (None: all) score visual ones. Stage 3 drops a multiple
    of `unit`, once there are `evict_after` new tokens.

    `boundaries` are the pruning layers p0 < p1 < p2; of `stages` only 2 and 3 matter here.
    `rotary` are the positions of M-RoPE; `deepstack[k]` [N, D] is added to the output of layer k.
    """
    prefill = Prefill(model, embeds_ND, videos, boundaries, rotary, deepstack, core)
    hidden_PD = prefill.run(prune=2 in stages)
    evict = partial(prefill.compress, decode_keep, unit) if 3 in stages and videos else None
    settings = len(embeds_ND), new_tokens, evict, evict_after
    return decode(model, prefill, hidden_PD, *settings)


def decode(
    model: LanguageModel,
    prefill: Prefill,
    hidden_PD: Tensor,
    prompt_tokens: int,
    new_tokens: int,
    evict: Callable[[], None] | None = None,
    evict_after: int = 0,
) -> Generated:
    """The greedy answer after a prefill that ended with `hidden_PD`.

    `evict` is called between two tokens, once there are `evict_after` of them.
    """
    tokens: list[int] = []
    rows_V: list[Tensor] = []
    for step in range(new_tokens):
        logits_V = model.lm_head(model.decoder.norm(hidden_PD[-1])).float()
        rows_V.append(torch.log_softmax(logits_V, dim=-1))
        tokens.append(int(logits_V.argmax()))
        if evict is not None and len(tokens) == max(evict_after, 1):
            evict()
        hidden_PD = model.decoder.embed_tokens(torch.tensor(tokens[-1:]))
        for layer in range(len(model.decoder.layers)):
            places = [prefill.rotary.at(prompt_tokens + step)]
            hidden_PD, _ = run_layer(model, layer, hidden_PD, places, None, prefill.cache)
    return Generated(
        tokens,
        torch.stack(rows_V),
        prefill.kept,
        prefill.scores,
        prefill.held,
        prefill.margin,
    )


class Prefill:
    """The prompt's way through the layers; afterwards `cache` and `held` say what is stored."""

    def __init__(
        self,
        model: LanguageModel,
        embeds_ND: Tensor,
        videos: Sequence[Video],
        boundaries: tuple[int, int, int],
        rotary: Positions | None = None,
        deepstack: Sequence[Tensor] = (),
        core: int | None = None,
    ) -> None:
        first, second, third = boundaries
        if not 1 <= first < second < third < len(model.decoder.layers):
            raise ValueError(f"pruning layers must rise from 1 and be layers; got {boundaries}")
        self.model = model
        self.embeds_ND = embeds_ND
        self.videos = videos
        self.boundaries = boundaries
        self.rotary = rotary or Positions.counted(len(embeds_ND))
        self.deepstack = deepstack
        self.cache = DynamicCache()
        self.margin = math.inf
        self.scores: list[list[list[float]]] = []
        self.held: list[list[int]] = []

        length = len(embeds_ND)
        visual = [video.selectable(length) for video in videos]
        for video, positions in zip(videos, visual, strict=True):
            if len(positions) != video.totals[0]:
                raise ValueError(
                    f"{len(positions)} tokens may be dropped; planned {video.totals[0]}"
                )
        droppable = {position for positions in visual for position in positions}
        self.text = [position for position in range(length) if position not in droppable]
        self.kept = [visual]
        last_video = max((video.end for video in videos), default=0)
        self.question = list(range(last_video, core or length)) or [length - 1]

    def run(self, prune: bool) -> Tensor:
        """Hidden states [P, D] after the last layer; `prune` drops tokens on the way."""
        hidden_PD = self.embeds_ND
        present = list(range(len(hidden_PD)))
        attention_HPP = torch.empty(0)
        for layer in range(len(self.model.decoder.layers)):
            if layer in self.boundaries:
                self._enter(self.boundaries.index(layer), attention_HPP, present, prune)
                staying = sorted(chain(self.text, *self.kept[-1]))
                hidden_PD = hidden_PD[[present.index(position) for position in staying]]
                present = staying
            causal_PP = torch.full((len(present), len(present)), -math.inf).triu(diagonal=1)
            places = [self.rotary.at(index) for index in present]
            hidden_PD, attention_HPP = run_layer(
                self.model, layer, hidden_PD, places, causal_PP, self.cache
            )
            if layer < len(self.deepstack):
                hidden_PD = hidden_PD + self.deepstack[layer][present]
            self.held.append(present)
        return hidden_PD

    def _enter(
        self, entry: int, attention_HPP: Tensor, present: Sequence[int], prune: bool
    ) -> None:
        """Score the visual tokens by the layer before, and add the next row to `kept`."""
        before = self.kept[-1]
        if entry == 2:
            texts = [self._separators(video, stage=2) for video in range(len(before))]
            self.kept.append(texts if prune else before)
            return
        rows = [present.index(position) for position in self.question]
        mean_P = attention_HPP[:, rows].double().mean(dim=(0, 1)).tolist()
        scores = [[mean_P[present.index(p)] for p in positions] for positions in before]
        self.scores.append(scores)
        if not prune:
            self.kept.append(before)
            return
        after = []
        for video, positions, values in zip(self.videos, before, scores, strict=True):
            positions, margin = video.select(positions, values, entry)
            after.append(positions)
            self.margin = min(self.margin, margin)
        self.kept.append(after)

    def compress(self, decode_keep: float, unit: int = 1) -> None:
        """Stage 3: from p0 on only text, and below p2 the best-scored share of each video.

        Separators are text. What goes is a multiple of `unit` in every layer.
        """
        first, second, third = self.boundaries
        for layer in range(first, len(self.held)):
            entry = sum(layer >= boundary for boundary in (second, third))
            share = decode_keep if layer < third else 0.0
            ran_on = self.kept[entry + 1]
            fixed = [v.separators_in(p) for v, p in zip(self.videos, ran_on, strict=True)]
            visual = [len(p) - len(f) for p, f in zip(ran_on, fixed, strict=True)]
            staying = list(self.text)
            for video, count in enumerate(pruning.held_counts(visual, share, unit)):
                staying += self._best(entry, video, count)
            staying.sort()
            rows = [self.held[layer].index(position) for position in staying]
            stored = self.cache.layers[layer]
            rows += range(len(self.held[layer]), stored.keys.shape[2])
            stored.keys = stored.keys[:, :, rows]
            stored.values = stored.values[:, :, rows]
            self.held[layer] = staying

    def _best(self, entry: int, video: int, count: int) -> list[int]:
        """Of the tokens a layer ran on, those with the best scores: of that layer's entry, or of
        the last that scored."""
        scored = min(entry, 1)
        score_of = dict(zip(self.kept[scored][video], self.scores[scored][video], strict=True))
        ran_on = self.kept[entry + 1][video]
        scores = [score_of[position] for position in ran_on]
        fixed = self.videos[video].separators_in(ran_on)
        selection = pruning.decode_kept(scores, count, fixed)
        self.margin = min(self.margin, selection.margin)
        return [ran_on[index] for index in selection.kept]

    def _separators(self, video: int, stage: int) -> list[int]:
        ran_on = self.kept[stage][video]
        return [ran_on[index] for index in self.videos[video].separators_in(ran_on)]


def run_layer(
    model: LanguageModel,
    layer: int,
    hidden_PD: Tensor,
    places: Sequence[Place],
    mask_PP: Tensor | None,
    cache: Any,
) -> tuple[Tensor, Tensor]:
    """One layer on tokens at `places`; keys and values join the cache.

    Without M-RoPE the three positions of a token are equal, and the first one counts.

    Returns the new hidden states and the attention after the softmax, [H, P, tokens in cache].
    """
    module = model.decoder.layers[layer]
    hidden_1PD = hidden_PD[None]
    places_3P = torch.tensor(places).T
    is_mrope = hasattr(model.decoder.rotary_emb, "mrope_section")
    positions = places_3P[:, None] if is_mrope else places_3P[:1]
    attended_1PD, attention_1HPP = module.self_attn(
        module.input_layernorm(hidden_1PD),
        position_embeddings=model.decoder.rotary_emb(hidden_1PD, positions),
        attention_mask=None if mask_PP is None else mask_PP[None, None],
        past_key_values=cache,
    )
    hidden_1PD = hidden_1PD + attended_1PD
    hidden_1PD = hidden_1PD + module.mlp(module.post_attention_layernorm(hidden_1PD))
    return hidden_1PD[0], attention_1HPP[0]
