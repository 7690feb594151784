"""A real scheduler for random settings: layouts, block sizes, pools, budgets, ahead or not.

Only the encoder's budget is stated instead of measured, because measuring it builds a processor.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from metok_vllm.engine.kv_cache.buffer_rows import BufferRows
from metok_vllm.engine.kv_cache.spec import StageSpec
from metok_vllm.plan.layers import StageLayout
from tests.untrained import MODEL_DIR

# An integer from `low` to `high`, both included: hypothesis or a seeded generator.
Pick = Callable[[int, int], int]

MAX_LEN = 128
MAX_VIDEO = 24
# Four, seven and eight cache groups.
LAYOUTS = (
    StageLayout((1, 2, 3), 4),
    StageLayout((4, 12, 20), 28),
    StageLayout((1, 3, 5), 8),
)


@dataclass(frozen=True)
class Settings:
    """What an engine is started with. `spare` is the pool beyond one longest request, in blocks."""

    ahead: bool = False
    layout: StageLayout = LAYOUTS[0]
    block_size: int = 4
    spare: int = 0
    batched: int = 64
    scheduled: int | None = None
    running: int = 8
    caching: bool = False
    whole_videos: bool = False
    watermark: float = 0.0
    priorities: bool = False
    threshold: int = 0
    shared: int | None = None  # most rows of METok prompts that share a step
    buffer: int = 2 * MAX_LEN  # rows of the prefill buffer

    @property
    def blocks(self) -> int:
        """Blocks that requests can have: vLLM starts only if the longest request fits."""
        return self.layout.num_groups * -(-MAX_LEN // self.block_size) + self.spare

    @property
    def stage_of_group(self) -> list[int]:
        """The stage of every cache group."""
        return [s for s, groups in enumerate(self.layout.groups_of_stage) for _ in range(groups)]

    @property
    def depth(self) -> int:
        """Steps that may be in flight (vLLM's `max_concurrent_batches`)."""
        return 2 if self.ahead else 1


def pick_settings(pick: Pick, ahead: bool) -> Settings:
    """Random settings, small enough that requests get into each other's way."""
    layout = LAYOUTS[pick(0, len(LAYOUTS) - 1)]
    batched = pick(MAX_VIDEO, 110)
    return Settings(
        ahead=ahead,
        layout=layout,
        block_size=(4, 8)[pick(0, 1)],
        spare=layout.num_groups * pick(0, 6),
        batched=batched,
        scheduled=(None, batched - 4)[pick(0, 1)],
        running=pick(2, 8),
        caching=bool(pick(0, 1)),
        whole_videos=bool(pick(0, 1)),
        watermark=(0.0, 0.05)[pick(0, 1)],
        priorities=pick(0, 3) == 3,
        shared=(None, 30)[pick(0, 1)],
        buffer=pick(MAX_LEN, 3 * MAX_LEN),
    )


@cache
def _demo_config() -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(MODEL_DIR),
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_LEN,
        additional_config={"metok": {}},
    ).create_engine_config()


def make_config(settings: Settings) -> Any:
    """The VllmConfig of an engine with the demo's model."""
    config = copy.copy(_demo_config())
    config.scheduler_config = scheduler = copy.copy(config.scheduler_config)
    config.cache_config = cache_config = copy.copy(config.cache_config)
    scheduler.async_scheduling = settings.ahead
    scheduler.max_num_batched_tokens = settings.batched
    scheduler.max_num_scheduled_tokens = settings.scheduled
    scheduler.max_num_encoder_input_tokens = settings.batched
    scheduler.encoder_cache_size = settings.batched
    scheduler.max_num_seqs = settings.running
    scheduler.disable_chunked_mm_input = settings.whole_videos
    scheduler.watermark = settings.watermark
    scheduler.long_prefill_token_threshold = settings.threshold
    scheduler.policy = "priority" if settings.priorities else "fcfs"
    cache_config.block_size = settings.block_size
    cache_config.enable_prefix_caching = settings.caching
    cache_config.num_gpu_blocks = settings.blocks + 1
    assert config.max_concurrent_batches == settings.depth
    return config


def make_cache_config(settings: Settings) -> Any:
    """vLLM's KVCacheConfig: one group of layers after another, and the pool's null block."""
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    groups = [
        KVCacheGroupSpec(
            [f"layer.{gid}"],
            StageSpec(
                block_size=settings.block_size,
                num_kv_heads=1,
                head_size=8,
                dtype=torch.float32,
                stage=stage,
            ),
        )
        for gid, stage in enumerate(settings.stage_of_group)
    ]
    return KVCacheConfig(settings.blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups)


def make_scheduler(config: Any, settings: Settings) -> Any:
    """The scheduler as EngineCore makes it from METok's configuration."""
    from vllm.v1.core.encoder_cache_manager import compute_mm_encoder_budget
    from vllm.v1.core.sched import scheduler as module

    compute, room = compute_mm_encoder_budget(config.scheduler_config, {"video": MAX_VIDEO})
    budget = SimpleNamespace(encoder_compute_budget=compute, encoder_cache_size=room)
    with mock.patch.object(module, "MultiModalBudget", return_value=budget):
        scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=make_cache_config(settings),
            structured_output_manager=mock.Mock(),
            block_size=settings.block_size,
            hash_block_size=settings.block_size,
        )
    scheduler.shared_rows = settings.shared
    scheduler.evictor_state.buffer = BufferRows(settings.buffer)
    return scheduler
