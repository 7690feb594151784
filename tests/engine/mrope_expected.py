"""What the naive decoder is given of a prompt for Qwen2.5-VL and Qwen3-VL.

Visual rows are those of the engine's encoder, without the channels in which positions travel there.
Positions, the text between frames and the tokens that stay come from the dense prompt and stage 1's
decisions, by `tests.reference` alone.

Shape suffixes: T frames, P features of a frame, N prompt tokens, M tokens of a video, W encoder
channels, D features, L deepstack levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.config import METokConfig
from tests.engine.rendered import Placed, Rendered
from tests.engine.staged_prompts import Frame, planned_video
from tests.reference import mrope, stage1
from tests.reference.decoder import LanguageModel, Video
from tests.reference.mrope import VIDEO, Kept, Medium, Positions
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL

MERGE = 2  # patches a side in one token
POSITION_CHANNELS = 6
VISION_END = ID_OF["<|vision_end|>"]


@dataclass(frozen=True)
class DecoderInput:
    """Arguments of the reference's `generate`. `kept` are the METok videos in the dense prompt."""

    embeds_ND: Tensor
    videos: list[Video]
    rotary: Positions
    deepstack: list[Tensor]
    kept: list[Kept]


def decoder_input(
    reference: LanguageModel,
    family: str,
    config: METokConfig,
    rendered: Rendered,
    dense: Rendered,
) -> DecoderInput:
    """Of a `rendered` prompt; `dense` is the same prompt with METok off."""
    width = reference.decoder.config.hidden_size
    rotary, kept = kept_of(family, config, rendered, dense, width)
    videos: list[Video] = []
    of_dense = placed_media(family, dense, "video")
    for number, of_video in enumerate(kept):
        frame = frame_of_video(dense.ids, *of_dense[number])
        start, decision = rendered.videos[number], rendered.decisions[number]
        tokens, length = len(of_video.tokens), len(rendered.ids)
        videos.append(planned_video(start, decision, config, tokens, length, frame))
    ids = mrope.kept_of_prompt(dense.ids, kept)
    assert len(ids) == len(rendered.ids)
    embeds_ND, deepstack = embedded(reference, ids, rendered)
    return DecoderInput(embeds_ND, videos, mrope.kept_positions(rotary, kept), deepstack, kept)


def kept_of(
    family: str, config: METokConfig, rendered: Rendered, dense: Rendered, width: int
) -> tuple[Positions, list[Kept]]:
    """Positions of the dense prompt, and what METok keeps of its videos; none if it is off.

    Features are selected by their first `width` channels.
    """
    images, videos = (placed_media(family, dense, modality) for modality in ("image", "video"))
    rotary = mrope.dense_positions(
        family, dense.ids, [medium for _, medium in images], [medium for _, medium in videos]
    )
    if not config.enabled:
        return rotary, []
    kept = []
    for (placed, medium), decision in zip(videos, rendered.decisions, strict=True):
        frame = frame_of_video(dense.ids, placed, medium)
        x_TPD = rows_of_video(dense, placed, medium)[..., :width]
        features = kept_features(config, decision, x_TPD, frame)
        tokens = mrope.kept_tokens(
            features, medium.rows * medium.columns, frame.before, frame.after
        )
        kept.append(Kept(placed.start, placed.length, tokens))
    return rotary, kept


def placed_media(family: str, dense: Rendered, modality: str) -> list[tuple[Placed, Medium]]:
    """Places and grids of a dense prompt's videos or images, in the order of the prompt."""
    return [(m, medium_of(family, m)) for m in dense.media if m.modality == modality]


def medium_of(family: str, placed: Placed) -> Medium:
    """The grid of tokens of a video or image, from what the processor said."""
    frames, height, width = map(int, placed.fields[f"{placed.modality}_grid_thw"])
    seconds = 1.0
    if family == QWEN2_5_VL and placed.modality == "video":
        seconds = float(placed.fields["second_per_grid_ts"])
    return Medium(frames, height // MERGE, width // MERGE, seconds)


def frame_of_video(ids: Sequence[int], placed: Placed, medium: Medium) -> Frame:
    """How a dense video's frames are pooled, and the text around them, read from the prompt."""
    size = medium.rows * medium.columns
    before: list[int] = []
    after: list[int] = []
    at, end = placed.start, placed.start + placed.length
    for _ in range(medium.frames):
        first = ids.index(VIDEO, at)
        assert all(token == VIDEO for token in ids[first : first + size])
        before.append(first - at)
        at = first + size
        after.append(int(at < end and ids[at] == VISION_END))
        at += after[-1]
    assert at == end
    return Frame((medium.rows, medium.columns), "area", stage1.NOWHERE, MERGE, before, after)


def rows_of_video(dense: Rendered, placed: Placed, medium: Medium) -> Tensor:
    """Encoded rows of a dense video, [T, P, W]."""
    runs = [dense.visual[row] for row in placed.rows if row in dense.visual]
    rows_MW = torch.cat(runs)
    return rows_MW.reshape(medium.frames, -1, rows_MW.shape[1])


def kept_features(
    config: METokConfig, decision: Any, x_TPD: Tensor, frame: Frame
) -> list[list[int]]:
    """The features of each frame whose places stage 1 keeps; x_TPD are the dense ones."""
    if 1 not in config.stages:
        return [list(range(x_TPD.shape[1]))] * len(x_TPD)
    strides = frame.strides(config)
    kept = []
    for number, class_ in enumerate(decision["class_of_frame"]):
        places = mrope.cell_centres(frame.grid, strides[class_])
        if config.reduce == "select":
            places = stage1.best_places(x_TPD[number].double().tolist(), len(places))
        kept.append(places)
    return kept


def embedded(
    reference: LanguageModel, ids: Sequence[int], rendered: Rendered
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings [N, D] of a prompt, and what deepstack adds after each of the first layers [N, D].

    `ids` are those of the dense prompt: text that stands inside a METok video too.
    """
    with torch.no_grad():
        embeds_ND: Tensor = reference.decoder.embed_tokens(torch.tensor(ids)).clone()
    width = embeds_ND.shape[1]
    is_text = torch.tensor([token not in (mrope.IMAGE, VIDEO) for token in ids])
    levels = max((rows.shape[1] // width for rows in rendered.visual.values()), default=1) - 1
    deepstack_LND = embeds_ND.new_zeros(levels, *embeds_ND.shape)
    for start, rows_MW in rendered.visual.items():
        assert rows_MW.shape[1] - (levels + 1) * width in (0, POSITION_CHANNELS)
        for token, row_W in enumerate(rows_MW, start):
            parts = row_W[: (levels + 1) * width].split(width)
            if is_text[token]:
                check_text(embeds_ND[token], parts)
                continue
            embeds_ND[token] = parts[0]
            for level, part in enumerate(parts[1:]):
                deepstack_LND[level, token] = part
    return embeds_ND, list(deepstack_LND)


def check_text(embedding_D: Tensor, parts: Sequence[Tensor]) -> None:
    """Text inside a video has its own embedding, and deepstack adds nothing to it."""
    torch.testing.assert_close(parts[0].to(embedding_D.dtype), embedding_D)
    assert not any(part.any() for part in parts[1:])
