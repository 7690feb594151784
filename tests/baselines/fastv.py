"""FastV by the naive decoder: one prompt, full attention matrices, tokens dropped once.

Chen et al. 2024, arXiv 2403.06764. Shapes: N prompt tokens, P tokens present in a layer, S new
tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tests.reference.decoder import Generated, LanguageModel, Prefill, Video, decode
from tests.reference.mrope import Positions
from tests.reference.stage1 import exact


def video_at(
    start: int, tokens: int, share: float, prompt_length: int, separators: Collection[int] = ()
) -> Video:
    """A video of one event: from the first boundary on, `share` of its visual tokens stay.

    `separators` are its text, counted from its start; they all stay.
    """
    droppable = tokens - (start + tokens == prompt_length)
    text = sum(token < droppable for token in separators)
    kept = text + math.ceil(exact(share) * (droppable - text))
    return Video(start, [0] * tokens, [True], [0.0], (droppable, kept, kept, kept), separators)


class FastVPrefill(Prefill):
    """Ranks by the prompt's last token and drops nothing after the first boundary."""

    def __init__(
        self,
        model: LanguageModel,
        embeds_ND: Tensor,
        videos: Sequence[Video],
        boundaries: tuple[int, int, int],
        rotary: Positions | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(model, embeds_ND, videos, boundaries, rotary, deepstack)
        self.question = [len(embeds_ND) - 1]

    def _enter(
        self, entry: int, attention_HPP: Tensor, present: Sequence[int], prune: bool
    ) -> None:
        if entry == 0:
            super()._enter(entry, attention_HPP, present, prune)
        else:
            self.kept.append(self.kept[-1])


@torch.no_grad()
def generate(
    model: LanguageModel,
    embeds_ND: Tensor,
    videos: Sequence[Video],
    boundaries: tuple[int, int, int],
    new_tokens: int,
    rotary: Positions | None = None,
    deepstack: Sequence[Tensor] = (),
) -> Generated:
    """Greedy answer to one prompt, given as embeddings with the visual rows in place."""
    prefill = FastVPrefill(model, embeds_ND, videos, boundaries, rotary, deepstack)
    hidden_PD = prefill.run(prune=True)
    return decode(model, prefill, hidden_PD, len(embeds_ND), new_tokens)
