"""What a request for one video costs at an engine's flags, dense and with METok.

Visual tokens, prefill steps and KV blocks follow from the number of frames and the settings alone,
so `metok doctor` and the engine's log give them before any request runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.plan.accounting import request_blocks
from metok_vllm.plan.families import FPS, SIZE
from metok_vllm.plan.layers import NUM_STAGES, StageLayout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import PromptPlan, Pruning

FRAMES = (32, 64, 128)
# Tokens of the chat template and a short question, part of them before the video.
TEXT_TOKENS, TEXT_BEFORE = 60, 20
POSITION_BYTES = 8


@dataclass(frozen=True)
class EngineSizes:
    """Sizes of an engine that decide what a request costs.

    `video`: from sampled frames to the layout of a video. `layout`: None for a decoder that runs
    whole. `chunk_tokens`: the most prompt tokens of a request in one step. `block_rows`: the most
    rows of a row block. `buffer_rows` and `row_bytes`: the prefill buffer of one worker.
    """

    video: Callable[[int], VideoLayout]
    layout: StageLayout | None
    block_size: int
    chunk_tokens: int
    block_rows: int
    max_model_len: int
    buffer_rows: int
    row_bytes: int

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the prefill buffer of one worker."""
        return self.buffer_rows * self.row_bytes


@dataclass(frozen=True)
class PromptCost:
    """A prompt's tokens, the visual ones among them, and its prefill steps when it runs alone.

    `fits`: whether --max-model-len admits the prompt and one new token.
    """

    visual_tokens: int
    prompt_tokens: int
    prefill_steps: int
    fits: bool


@dataclass(frozen=True)
class RequestCost:
    """A request for one video of `frames` frames, dense and with METok.

    `row_blocks`: row blocks of stages 1 to 3 in the last chunk; empty if no stage drops tokens.
    KV blocks are those of all cache groups, `decode_blocks` once the first new token has a slot.
    """

    frames: int
    dense: PromptCost
    metok: PromptCost
    row_blocks: tuple[int, ...]
    dense_blocks: int
    prefill_blocks: int
    decode_blocks: int


def buffer_row_bytes(hidden_size: int, kv_size: int, value_bytes: int, axes: int = 1) -> int:
    """Bytes of one row of the prefill buffer: hidden state, keys of one layer, and a position.

    `kv_size` is the number of KV heads of one worker times the size of a head, `axes` those of
    rotary positions.
    """
    return (hidden_size + kv_size) * value_bytes + axes * POSITION_BYTES


def request_cost(frames: int, config: METokConfig, engine: EngineSizes) -> RequestCost:
    """The cost of a request with METok's settings `config` and TEXT_TOKENS tokens of text."""
    video = engine.video(frames)
    encoded = video.tokens(config)
    dense = _prompt_cost(video.dense_tokens(), engine)
    metok = _prompt_cost(encoded, engine)
    plan = None
    if config.compresses:
        pruning = Pruning.of_video(config, video)
        plan = PromptPlan.of(metok.prompt_tokens, [("video", TEXT_BEFORE, encoded, pruning)])
    row_blocks: tuple[int, ...] = ()
    if plan is not None:
        row_blocks = tuple(
            _parts(metok.prompt_tokens - plan.prefill_dropped[stage], engine.block_rows)
            for stage in range(1, NUM_STAGES)
        )

    def blocks(tokens: int, of: PromptPlan | None) -> int:
        return request_blocks(tokens, engine.block_size, engine.layout, of)

    return RequestCost(
        frames,
        dense,
        metok,
        row_blocks,
        blocks(dense.prompt_tokens, None),
        blocks(metok.prompt_tokens, plan),
        blocks(metok.prompt_tokens + 1, plan),
    )


def request_costs(
    config: METokConfig, engine: EngineSizes, frames: Sequence[int] = FRAMES
) -> list[RequestCost]:
    """The cost of a request for each number of frames."""
    return [request_cost(count, config, engine) for count in frames]


def costs_json(costs: Sequence[RequestCost], engine: EngineSizes) -> dict[str, Any]:
    """JSON-ready costs, with the flags and the prefill buffer that they follow from."""
    return {
        "max_model_len": engine.max_model_len,
        "chunk_tokens": engine.chunk_tokens,
        "block_size": engine.block_size,
        "text_tokens": TEXT_TOKENS,
        "assumed": assumed(engine),
        "prefill_buffer": {"rows": engine.buffer_rows, "bytes": engine.buffer_bytes},
        "requests": [
            {
                "frames": cost.frames,
                "dense": asdict(cost.dense),
                "metok": {**asdict(cost.metok), "row_blocks": list(cost.row_blocks)},
                "kv_blocks": {
                    "dense": cost.dense_blocks,
                    "prefill": cost.prefill_blocks,
                    "decode": cost.decode_blocks,
                },
            }
            for cost in costs
        ],
    }


def assumed(engine: EngineSizes) -> dict[str, float] | None:
    """What is assumed of a video whose tokens depend on more than its number of frames: height and
    width in pixels, sampled frames a second. None for models with square frames."""
    if engine.video(1).sampled_frames == 1:
        return None
    height, width = SIZE
    return {"height": height, "width": width, "fps": FPS}


def _prompt_cost(visual_tokens: int, engine: EngineSizes) -> PromptCost:
    tokens = visual_tokens + TEXT_TOKENS
    steps = _parts(tokens, engine.chunk_tokens)
    return PromptCost(visual_tokens, tokens, steps, tokens < engine.max_model_len)


def _parts(count: int, most: int) -> int:
    """The number of parts of at most `most` that `count` is cut into."""
    return -(-count // most)
