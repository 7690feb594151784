"""Prompts as the engine receives them: token ids, media with their places, encoded rows.

The renderer and the encoder are the engine's own, called outside a step.

Shape suffixes: M tokens of a video or image, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.models.request import FIELD
from tests.engine import engines
from tests.engine.staged import StagedEngine


@dataclass(frozen=True)
class Placed:
    """A video or image in a prompt: `length` tokens from `start` on.

    `rows` are the positions among them that the encoder's rows take. `fields` are what the model's
    processor said of it, without pixels.
    """

    modality: str
    start: int
    length: int
    rows: list[int]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """A prompt as the engine receives it.

    `visual` maps positions to encoded rows [M, D] that start there; a video's are apart where text
    is between its frames. `videos` are the positions of the videos, `decisions` what stage 1
    decided about each (None where it did not run). `media` are in the order of the prompt. `plan`
    is the renderer's.
    """

    ids: list[int]
    visual: dict[int, Tensor]
    videos: list[int]
    decisions: list[Any]
    media: list[Placed]
    plan: Any


def render(engine: StagedEngine, prompt: Any) -> Rendered:
    """Run the renderer and the encoder on a prompt; the engine's stage-1 records stay as before."""
    inputs = engines.render(engine.llm, prompt)
    plan = inputs.get("metok")
    visual: dict[int, Tensor] = {}
    videos: list[int] = []
    decisions: list[Any] = []
    media: list[Placed] = []
    stage1 = engine.model.stage1
    remembered, stage1.events.entries = stage1.events.entries, stage1.events.entries.copy()
    for modality, items in inputs.get("mm_kwargs", {}).items():
        for item, place in zip(items, inputs["mm_placeholders"][modality], strict=True):
            fields = {name: field.field.reduce_data([field]) for name, field in item.items()}
            if FIELD in item:
                fields[FIELD] = [item[FIELD].data]
            with torch.inference_mode():
                (rows_MD,) = engine.model.embed_multimodal(**fields)
            rows = _rows_of(place)
            visual |= _runs(rows, rows_MD.clone())
            small = {name: field.data for name, field in item.items() if "pixel" not in name}
            media.append(Placed(modality, place.offset, place.length, rows, small))
            if modality == "video":
                decisions.append(stage1.events.report(plan.videos[len(videos)].key))
                videos.append(place.offset)
    stage1.events.entries = remembered
    media.sort(key=lambda placed: placed.start)
    return Rendered(list(inputs["prompt_token_ids"]), visual, videos, decisions, media, plan)


def _rows_of(place: Any) -> list[int]:
    """The positions of a placeholder that embeddings take."""
    if place.is_embed is None:
        return list(range(place.offset, place.offset + place.length))
    return [place.offset + token for token in place.is_embed.nonzero().flatten().tolist()]


def _runs(rows: list[int], rows_MD: Tensor) -> dict[int, Tensor]:
    """Rows by the first position of each run of neighbours."""
    starts = [i for i, row in enumerate(rows) if i == 0 or rows[i - 1] != row - 1]
    ends = [*starts[1:], len(rows)]
    assert len(rows_MD) == len(rows)
    return {rows[first]: rows_MD[first:end] for first, end in zip(starts, ends, strict=True)}
