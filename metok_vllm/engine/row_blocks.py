"""Row blocks: a stage with more rows than a step may have runs in parts.

vLLM profiles memory for steps of `max_num_batched_tokens` rows. The last chunk of a METok prompt
brings the rows of earlier ones along, so its stages may have more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from metok_vllm.devices import array_on
from metok_vllm.engine.stage_views import StageView
from metok_vllm.engine.step import BatchGeometry
from metok_vllm.models.cache_writer import RowBlock

Ints64 = npt.NDArray[np.int64]


def slots_of(table: Any, row: Any, position: Ints64) -> Ints64:
    """Cache slots of `position` in one of vLLM's block tables; `row` one for all, or one each."""
    block = table.block_table.np[row, position // table.block_size].astype(np.int64)
    slots: Ints64 = block * table.block_size + position % table.block_size
    return slots


def build_blocks(runner: Any, geometry: BatchGeometry, stage: int) -> list[RowBlock]:
    """The blocks of a stage, each with the metadata of its layers; empty for a single block."""
    parts = geometry.blocks(stage, runner.max_num_tokens)
    if len(parts) < 2:
        return []
    groups = [
        (gid, group)
        for gid, group in enumerate(runner.kv_cache_config.kv_cache_groups)
        if group.kv_cache_spec.stage == stage
    ]
    common = runner.metok_views.common
    blocks, first = [], 0
    for query_R, start_R in parts:
        view = StageView.of(query_R, start_R, runner.device)
        request_N = np.repeat(np.arange(len(query_R)), query_R)
        metadata, slots = {}, {}
        for gid, group in groups:
            table = runner.input_batch.block_table[gid]
            slot_N = array_on(slots_of(table, request_N, view.position_host_N), runner.device)
            own = view.of_metadata(common(table.get_device_tensor(len(query_R)), slot_N))
            builder = runner.attn_groups[gid][0].get_metadata_builder(0)
            built = builder.build(common_prefix_len=0, common_attn_metadata=own)
            metadata.update(dict.fromkeys(group.layer_names, built))
            slots.update(dict.fromkeys(group.layer_names, slot_N))
        blocks.append(RowBlock(range(first, first + view.rows), metadata, slots))
        first += view.rows
    return blocks
