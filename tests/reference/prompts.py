"""Prompts for tests of the decoder: text and videos in every order, as embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tests.reference.decoder import LanguageModel, Video
from tests.reference.staged_checkpoint import embed_prompt

# In turn: so many text tokens, or a video whose events have so many tokens. Every fifth token of a
# video may be a separator.
LAYOUTS: dict[str, list[int | list[int]]] = {
    "one video": [5, [17, 30, 9, 24, 12], 11],
    "no text before": [[20, 40], 3],
    "no text after": [6, [25, 12, 20]],
    "two videos": [4, [15, 22], 3, [30, 8, 11], 7],
    "one event": [4, [60], 5],
}
STRIDE = 5
KEEP = Fraction(1, 2)


@dataclass(frozen=True)
class Prompt:
    """Embeddings [N, D] with the visual rows in place, and the videos among them."""

    embeds_ND: Tensor
    videos: list[Video]


def video_at(
    start: int, lengths: Sequence[int], ends_prompt: bool, separated: bool = False
) -> Video:
    """A video whose events have so many tokens; every second one is a key event.

    The totals are those of its own events, and not of equally long ones.
    """
    key = [event % 2 == 0 for event in range(len(lengths))]
    event_of = [event for event, length in enumerate(lengths) for _ in range(length)]
    relevance = [(0.8 if is_key else 0.4) - event / 100 for event, is_key in enumerate(key)]
    tokens = len(event_of) - ends_prompt
    separators = range(4, len(event_of), STRIDE) if separated else range(0)
    visual = [token for token in range(tokens) if token not in separators]
    in_key = sum(key[event_of[token]] for token in visual)
    first = math.ceil(KEEP * in_key + KEEP / 2 * (len(visual) - in_key))
    staying = (first, math.ceil(KEEP * KEEP * in_key), 0)
    totals = (tokens, *(tokens - len(visual) + count for count in staying))
    return Video(start, event_of, key, relevance, totals, separators)


def prompt_of(
    model: LanguageModel, parts: Sequence[int | Sequence[int]], separated: bool = False
) -> Prompt:
    """The same prompt every time: random words, and videos of which each event is a scene."""
    generator = torch.Generator().manual_seed(7)
    width = model.decoder.config.hidden_size
    ids: list[int] = []
    visual: dict[int, Tensor] = {}
    videos = []
    for place, part in enumerate(parts):
        if isinstance(part, int):
            ids += torch.randint(300, 900, (part,), generator=generator).tolist()
            continue
        videos.append(video_at(len(ids), part, place == len(parts) - 1, separated))
        rows = []
        for length in part:
            scene_D = torch.randn(width, generator=generator)
            rows += [
                0.3 * scene_D + 0.2 * torch.randn(width, generator=generator) for _ in range(length)
            ]
        visual[len(ids)] = torch.stack(rows)
        ids += [0] * len(rows)
    return Prompt(embed_prompt(model, ids, visual), videos)
