"""What a request costs, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest

from metok_vllm.config import METokConfig
from metok_vllm.plan.costs import (
    EngineSizes,
    buffer_row_bytes,
    costs_json,
    request_cost,
    request_costs,
)
from metok_vllm.plan.layers import StageLayout
from tests.layouts import square

# 8 x 8 patches: 16, 4 and 1 tokens a frame. Stages of 2, 4, 2 and 2 layers in groups of 2.
ENGINE = EngineSizes(
    video=partial(square, grid=8),
    layout=StageLayout((2, 6, 8), 10),
    block_size=32,
    chunk_tokens=256,
    block_rows=256,
    max_model_len=1024,
    buffer_rows=2048,
    row_bytes=buffer_row_bytes(128, 64, 2),
)
HALF = METokConfig(num_events=4, key_event_ratio=0.5, keep_ratio=0.5)
OFF = METokConfig(enabled=False)
# LongVA's frames: 24 x 24 patches, pooled to 12 x 12; decoder layers as in Qwen2-7B.
LONGVA = EngineSizes(
    video=partial(square, grid=24),
    layout=StageLayout((4, 12, 20), 28),
    block_size=32,
    chunk_tokens=8192,
    block_rows=8192,
    max_model_len=1 << 18,
    buffer_rows=1 << 19,
    row_bytes=buffer_row_bytes(3584, 512, 2),
)


def test_32_frames_by_hand() -> None:
    cost = request_cost(32, HALF, ENGINE)
    # Four events of 8 frames, two of them key: 2 * 6 frames at 16 tokens, 2 * 2 + 2 * 6 at 4, the
    # other 4 at 1, and 4 newlines.
    encoded = 12 * 16 + 16 * 4 + 4 + 4
    assert (cost.frames, cost.metok.visual_tokens, encoded) == (32, 264, 264)
    assert cost.dense.visual_tokens == 32 * 16 + 1
    # With 60 tokens of text: 324 and 573, in steps of 256.
    assert (cost.metok.prompt_tokens, cost.metok.prefill_steps) == (324, 2)
    assert (cost.dense.prompt_tokens, cost.dense.prefill_steps) == (573, 3)
    # A key event has 6 * 16 + 2 * 4 + 1 = 105 tokens, another 6 * 4 + 2 * 1 + 1 = 27. Of 210 key
    # tokens and 54 others, stage 1 keeps (210 + 54 / 2) / 2 = 118.5, stage 2 keeps 210 / 4 = 52.5.
    rows = (324, 60 + 119, 60 + 53, 60)
    assert cost.row_blocks == (1, 1, 1)
    assert cost.dense_blocks == 5 * 18
    # ceil(324 / 32) = 11, two groups of ceil(179 / 32) = 6, then 4 and 2.
    assert [-(-n // 32) for n in rows] == [11, 6, 4, 2]
    assert cost.prefill_blocks == 11 + 2 * 6 + 4 + 2
    # In decoding 325 tokens in stage 0, and 61 of text in the others.
    assert cost.decode_blocks == 11 + 2 * 2 + 2 + 2


def test_row_blocks_are_cut_at_the_budget() -> None:
    """Rows of stages 1 to 3 are 179, 113 and 60."""
    for budget, parts in ((179, (1, 1, 1)), (178, (2, 1, 1)), (64, (3, 2, 1)), (30, (6, 4, 2))):
        assert request_cost(32, HALF, replace(ENGINE, block_rows=budget)).row_blocks == parts


@pytest.mark.parametrize(("budget", "steps"), [(324, 1), (323, 2), (162, 2), (161, 3), (1, 324)])
def test_chunks_are_cut_at_the_budget(budget: int, steps: int) -> None:
    assert request_cost(32, HALF, replace(ENGINE, chunk_tokens=budget)).metok.prefill_steps == steps


@pytest.mark.parametrize(
    ("longest", "dense", "metok"), [(574, True, True), (573, False, True), (324, False, False)]
)
def test_prompts_that_do_not_fit(longest: int, dense: bool, metok: bool) -> None:
    """One new token needs its place."""
    cost = request_cost(32, HALF, replace(ENGINE, max_model_len=longest))
    assert (cost.dense.fits, cost.metok.fits) == (dense, metok)


def test_without_metok_both_are_dense() -> None:
    cost = request_cost(64, OFF, ENGINE)
    assert cost.metok == cost.dense
    assert cost.row_blocks == ()
    assert cost.prefill_blocks == cost.dense_blocks == 5 * -(-(64 * 16 + 61) // 32)


def test_stage_1_alone_leaves_the_decoder_whole() -> None:
    cost = request_cost(32, replace(HALF, stages=(1,)), replace(ENGINE, layout=None))
    assert (cost.metok.visual_tokens, cost.row_blocks) == (264, ())
    assert (cost.dense_blocks, cost.prefill_blocks, cost.decode_blocks) == (18, 11, 11)


def test_a_row_of_the_prefill_buffer() -> None:
    # Qwen2-7B in bfloat16: 3,584 values of a hidden state, 4 heads of 128, one 64-bit position.
    assert LONGVA.row_bytes == 2 * (3584 + 4 * 128) + 8
    assert ENGINE.buffer_bytes == 2048 * (2 * (128 + 64) + 8)


def test_the_json_has_the_same_numbers() -> None:
    costs = request_costs(HALF, ENGINE)
    shown = json.loads(json.dumps(costs_json(costs, ENGINE)))
    assert [entry["frames"] for entry in shown["requests"]] == [32, 64, 128]
    first = shown["requests"][0]
    assert first["metok"]["visual_tokens"] == 264
    assert first["metok"]["row_blocks"] == [1, 1, 1]
    assert first["kv_blocks"] == {"dense": 90, "prefill": 29, "decode": 19}
    assert shown["prefill_buffer"] == {"rows": 2048, "bytes": ENGINE.buffer_bytes}


def test_1000_frames_at_the_geometry_of_longva() -> None:
    cost = request_cost(1000, METokConfig(), LONGVA)
    assert cost.dense.visual_tokens == 1000 * 144 + 1
    # Five events of 200 frames, three of them key: 18 frames at 144 tokens, 3 * 194 + 2 * 6 at 36,
    # the other 388 at 9, and 5 newlines.
    encoded = 18 * 144 + 594 * 36 + 388 * 9 + 5
    assert cost.metok.visual_tokens == encoded == 27_473
    assert (cost.dense.prefill_steps, cost.metok.prefill_steps) == (18, 4)
    # A key event has 6 * 144 + 194 * 36 + 1 = 7,849 tokens, another 6 * 36 + 194 * 9 + 1 = 1,963.
    # 0.76 * (23,547 + 3,926 / 2) = 19,387.6 and 0.76 ** 2 * 23,547 = 13,600.7 remain.
    assert encoded == 3 * 7849 + 2 * 1963
    assert cost.row_blocks == (3, 2, 1)
    rows = (27_533, 19_388 + 60, 13_601 + 60, 60)
    one, two, three, four = (-(-n // 32) for n in rows)
    assert cost.prefill_blocks == one + 2 * two + 2 * three + 2 * four
    assert cost.decode_blocks == 861 + 6 * 2
    assert cost.dense_blocks == 7 * 4502
    # 1 - 873 / 31,514: 97.2 % fewer blocks.
    assert 1 - cost.decode_blocks / cost.dense_blocks > 0.97
