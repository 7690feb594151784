"""The reference's positions equal vLLM's for dense prompts; METok's tokens keep theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.reference.mrope import (
    IMAGE,
    VIDEO,
    Kept,
    Medium,
    Positions,
    cell_centres,
    dense_positions,
    kept_positions,
    kept_tokens,
)
from tests.reference.qwen_vl_config import ID_OF, QWEN2_5_VL, QWEN3_VL, QWEN_VL

START, END = ID_OF["<|vision_start|>"], ID_OF["<|vision_end|>"]
# Timestamps of one, two and three tokens.
STAMPS = ([301], [302, 303], [304, 305, 306])

PICTURE = Medium(1, 3, 2)
# The times of seconds 0.5 are 0, 1, 2; of 2/3 with two positions a second 0, 1, 2, 4; of 7/3 they
# exceed rows and columns, so that text continues after the last time.
CLIPS = [Medium(3, 2, 3, 0.5), Medium(4, 5, 2, 2 / 3), Medium(5, 2, 2, 7 / 3)]
PROMPTS: dict[str, list[int | Medium]] = {
    "text": [7],
    "video": [4, CLIPS[1], 5],
    "video of long times": [4, CLIPS[2], 5],
    "video first": [CLIPS[0], 3],
    "video last": [3, CLIPS[0]],
    "two videos": [2, CLIPS[0], 3, CLIPS[2], 4],
    "video, image": [2, CLIPS[1], 3, PICTURE, 4],
    "image, video": [2, PICTURE, 3, CLIPS[1], 4],
    "one frame": [2, Medium(1, 3, 4, 1.0), 2],
}


def lay_out(family: str, parts: list[int | Medium]) -> tuple[list[int], list[Any]]:
    """Token ids of a dense prompt and vLLM's features of its media."""
    ids: list[int] = []
    features = []
    for part in parts:
        if isinstance(part, int):
            ids += range(400, 400 + part)
            continue
        ids.append(START)
        is_video = part is not PICTURE
        offset, tokens = len(ids), part.rows * part.columns
        if not is_video:
            ids += [IMAGE] * tokens
        elif family == QWEN2_5_VL:
            ids += [VIDEO] * part.frames * tokens
        else:
            for frame in range(part.frames):
                ids += [*STAMPS[frame % 3], START, *[VIDEO] * tokens, END]
        ids.append(END)
        name = "video" if is_video else "image"
        data = {f"{name}_grid_thw": torch.tensor([part.frames, part.rows * 2, part.columns * 2])}
        if is_video and family == QWEN2_5_VL:
            data["second_per_grid_ts"] = torch.tensor(part.seconds, dtype=torch.float64)
        place = SimpleNamespace(offset=offset)
        fields = {field: SimpleNamespace(data=value) for field, value in data.items()}
        features.append(SimpleNamespace(modality=name, mm_position=place, data=fields))
    return ids, features


def in_vllm(family: str, ids: list[int], features: list[Any]) -> tuple[list[Any], int]:
    from transformers import AutoConfig
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration

    config = QWEN_VL[family].config()
    model: Any = SimpleNamespace(config=AutoConfig.for_model(config.pop("model_type"), **config))
    if family == QWEN2_5_VL:
        kind: Any = Qwen2_5_VLForConditionalGeneration
        model.iter_mm_grid_thw = lambda given: kind.iter_mm_grid_thw(model, given)
    else:
        kind = Qwen3VLForConditionalGeneration
        model._get_mrope_input_positions = kind._get_mrope_input_positions
    positions_3N, delta = kind.get_mrope_input_positions(model, ids, features)
    return [tuple(place) for place in positions_3N.T.tolist()], delta


def media_of(parts: list[int | Medium]) -> tuple[list[Medium], list[Medium]]:
    media = [part for part in parts if isinstance(part, Medium)]
    return [m for m in media if m is PICTURE], [m for m in media if m is not PICTURE]


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL])
@pytest.mark.parametrize("name", PROMPTS)
def test_dense_positions_equal_those_of_vllm(family: str, name: str) -> None:
    ids, features = lay_out(family, PROMPTS[name])
    found = dense_positions(family, ids, *media_of(PROMPTS[name]))
    assert len(found.places) == len(ids)
    assert (found.places, found.delta) == in_vllm(family, ids, features)


def test_pooled_tokens_are_at_the_centres_of_their_cells() -> None:
    # Cells of 2 x 2 in 3 x 5 features are centred at rows 0 and 2, columns 0, 2 and 4; the cell of
    # 4 x 4 at row 1, column 1, and the one that it leaves at column 4.
    assert cell_centres((3, 5), 2) == [0, 2, 4, 10, 12, 14]
    assert cell_centres((3, 5), 4) == [6, 9]
    assert cell_centres((3, 5), 1) == [*range(15)]


def test_separators_stay_around_the_features_that_are_kept() -> None:
    assert kept_tokens([[0, 2], [5]], 6) == [0, 2, 6 + 5]
    # One token before and two after the first frame, two before and none after the second.
    assert kept_tokens([[0, 2], [5]], 6, [1, 2], [2, 0]) == [0, 1, 3, 7, 8, 9, 10, 11 + 5]


@pytest.mark.parametrize("family", [QWEN2_5_VL, QWEN3_VL])
def test_tokens_of_a_metok_prompt_keep_their_positions(family: str) -> None:
    ids, _ = lay_out(family, PROMPTS["two videos"])
    dense = dense_positions(family, ids, *media_of(PROMPTS["two videos"]))
    first, second = (ids.index(VIDEO), len(ids) - 1 - ids[::-1].index(VIDEO))
    videos = [Kept(first, 3, [0, 2]), Kept(second - 3, 4, [1])]
    found = kept_positions(dense, videos)
    dropped = {first + 1, second - 3, second - 1, second}
    kept = [place for place in range(len(ids)) if place not in dropped]
    assert found.places == [dense.places[place] for place in kept]
    # The first new token has the position that it has in the dense prompt.
    assert len(found.places) + found.delta == len(ids) + dense.delta


def test_dense_prompts_are_kept_whole() -> None:
    dense = Positions(Positions.counted(9).places, 4)
    assert kept_positions(dense, []) == dense
    assert kept_positions(dense, [Kept(2, 5, [*range(5)])]) == dense
