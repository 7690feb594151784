"""Input of a staged step, and the cache writes that evict.

Either the kept rows go to the front of their slots, so that the blocks at the end become free. Or
all rows are ordered, so that blocks at the head can: visual rows that decoding will not hold, those
that it holds, text. The order among keys that a later row sees does not matter to attention.
Rows are written with the attention backend's own cache write, so no cache layout is assumed.

Shape suffixes: M rows of a stage, K rows to keep, G KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metok_vllm.plan.step import StagedStep
from metok_vllm.pruning import Selection


@dataclass(frozen=True)
class RowBlock:
    """A part of a stage's rows that runs through its layers at once.

    `metadata` and `slots` are the attention metadata and the slot mapping of each layer name.
    """

    rows: range
    metadata: Mapping[str, Any]
    slots: Mapping[str, Tensor]


@dataclass(frozen=True)
class StagedInput:
    """A step with the cache slots that its prompts' rows are written to again.

    `slots[stage][i][group]` are those of a prompt in the given cache group of the stage: of the
    evicted prompts from their first visual token on, then of those that are put visual first.
    `group_of_layer` is the cache group of each layer.
    `blocks[stage]` cuts a stage with more rows than a step may have; empty: vLLM's own metadata.
    """

    step: StagedStep
    slots: Sequence[Sequence[Mapping[int, Tensor]]]
    group_of_layer: Sequence[int]
    blocks: Sequence[Sequence[RowBlock]]


class KeptRowsWriter:
    """Writes keys and values of one stage's layers again, where decoding reads them.

    Later row blocks read the slots of earlier ones, so with several blocks the rows wait for the
    end of the stage.
    """

    def __init__(self, given: StagedInput, selection: Selection, stage: int) -> None:
        self.group_of_layer = given.group_of_layer
        self.slots_of_prompts = given.slots[stage]
        self.in_blocks = len(given.blocks[stage]) > 1
        rows = [
            _to_front(given.step, selection, stage),
            _visual_first(given.step, selection, stage),
        ]
        found = [row_K for row_K in rows if row_K is not None]
        self.row_K = torch.cat(found) if found else None
        self.kept: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self.slots: dict[int, Tensor] = {}

    def add(
        self, number: int, attention: Any, k_MGD: Tensor, v_MGD: Tensor, first_row: int
    ) -> None:
        """After layer `number` ran on the stage's rows from `first_row` on."""
        if self.row_K is None:
            return
        if not self.in_blocks:
            self._write(number, attention, k_MGD[self.row_K], v_MGD[self.row_K])
            return
        # How many of the rows lie in a block is not known on the host: all are gathered.
        local_K = self.row_K - first_row
        inside_K = ((local_K >= 0) & (local_K < len(k_MGD)))[:, None, None]
        local_K = local_K.clamp(0, len(k_MGD) - 1)
        key_KGD, value_KGD = k_MGD[local_K], v_MGD[local_K]
        if number in self.kept:
            _, key, value = self.kept[number]
            key_KGD = torch.where(inside_K, key_KGD, key)
            value_KGD = torch.where(inside_K, value_KGD, value)
        self.kept[number] = attention, key_KGD, value_KGD

    def finish(self) -> None:
        """Write the rows that waited for the end of the stage."""
        for number, kept in self.kept.items():
            self._write(number, *kept)
        self.kept.clear()

    def _write(self, number: int, attention: Any, key_KGD: Tensor, value_KGD: Tensor) -> None:
        group = self.group_of_layer[number]
        if group not in self.slots:
            self.slots[group] = torch.cat([slots[group] for slots in self.slots_of_prompts])
        slots_K = self.slots[group]
        # vLLM's CPU cache write reads past the end when there are fewer slots than rows.
        assert len(key_KGD) == len(slots_K), (len(key_KGD), len(slots_K))
        cache = attention.kv_cache
        attention.impl.do_kv_cache_update(attention, key_KGD, value_KGD, cache, slots_K)


def _to_front(step: StagedStep, selection: Selection, stage: int) -> Tensor | None:
    """Rows of the evicted prompts that decoding holds, from their first visual token on."""
    prompts = step.evicted()
    parts = [part for p in prompts for part in p.text_rows(stage)]
    rows = [torch.arange(part.start, part.stop, device=selection.device) for part in parts]
    visual_K = selection.kept_for_decode(stage, prompts) if prompts else None
    if visual_K is not None:
        rows.append(visual_K)
    return torch.cat(rows).sort().values if rows else None


def _visual_first(step: StagedStep, selection: Selection, stage: int) -> Tensor | None:
    """Rows of each prompt that is put visual first, in the order of their slots."""
    prompts = step.visual_first(stage)
    if not prompts:
        return None
    # Three ranks for each prompt, one above all for the rows of others.
    rows, device = step.num_rows[stage], selection.device
    rank_M = torch.full((rows,), 3 * len(prompts), dtype=torch.int64, device=device)
    for number, prompt in enumerate(prompts):
        first = prompt.first_row[stage]
        rank_M[first : first + prompt.rows[stage]] = 3 * number + 2
        for video, row in prompt.videos(stage):
            rank_M[row : row + video.counts.prefill[stage]] = 3 * number
    held_K = selection.kept_for_decode(stage, prompts)
    if held_K is not None:
        rank_M[held_K] += 1
    return rank_M.argsort(stable=True)[: sum(prompt.rows[stage] for prompt in prompts)]
