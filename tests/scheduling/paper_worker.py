"""A worker whose cache holds names instead of keys and values, under METok's own runner.

Rows, plans, views and compact slots are the real StagedRunner's; below it stands as little of
vLLM's runner as that needs. Every step writes each of its rows into its slot, then looks up all
that attention would read: a block that was taken back too early, given to another request or found
under a wrong prefix holds another name. Steps run in the order in which they are scheduled, as
they do on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from metok_vllm.engine.runner import StagedRunner
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan
from metok_vllm.plan.step import StagedPrompt
from tests.scheduling.settings import MAX_LEN, Settings

Names = npt.NDArray[np.int64]
# What a METok request's slot may hold: a row of the prefill, one moved when the prompt was made
# compact, one that was decoded.
PREFILLED, MOVED, DECODED = range(3)
STRIDE = 0x9E3779B97F4A7C1


def prompt_names(
    gid: int, stage: int, plan: PromptPlan, content: Names, core: int | None, life: int = 0
) -> Names:
    """What a stage's slots hold of a prompt: those of the core depend on it alone, those of the
    rest on their tokens as well. Without a core they are those of a request's `life`."""
    dropped = plan.prefill_dropped[stage]
    base = life if core is None else int(content[core - 1])
    names: Names = np.arange(plan.prompt_tokens - dropped, dtype=np.int64) * STRIDE
    names ^= np.int64(base ^ (gid + 1) * 0x5DEECE66D)
    if core is not None:
        names[core - dropped :] = content[core : plan.prompt_tokens] ^ np.int64(base ^ gid)
    return names


@dataclass
class RequestState:
    """As vLLM's CachedRequestState. `life` is new after every preemption."""

    block_ids: list[list[int]]
    computed: int
    life: int
    mm_features: list[Any]


class Table:
    """Block rows of the running batch in one cache group."""

    def __init__(self, rows: int, block_size: int) -> None:
        self.block_size = block_size
        width = -(-MAX_LEN // block_size)
        self.block_table = SimpleNamespace(np=np.zeros((rows, width), dtype=np.int32))
        self.num_blocks_per_row = np.zeros(rows, dtype=np.int32)

    def append(self, row: int, blocks: Sequence[int]) -> None:
        begin = self.num_blocks_per_row[row]
        self.block_table.np[row, begin : begin + len(blocks)] = blocks
        self.num_blocks_per_row[row] += len(blocks)

    def keep(self, rows: list[int]) -> None:
        """Close the gaps that requests left."""
        self.block_table.np[: len(rows)] = self.block_table.np[rows]
        self.num_blocks_per_row[: len(rows)] = self.num_blocks_per_row[rows]
        self.num_blocks_per_row[len(rows) :] = 0

    def row(self, row: int) -> list[int]:
        blocks: list[int] = self.block_table.np[row, : self.num_blocks_per_row[row]].tolist()
        return blocks

    def slots(self, row: int, positions: Names) -> Names:
        blocks = self.block_table.np[row, positions // self.block_size].astype(np.int64)
        inside = positions // self.block_size < self.num_blocks_per_row[row]
        assert inside.all(), f"position {positions[~inside]} has no block"
        slots: Names = blocks * self.block_size + positions % self.block_size
        return slots


@dataclass
class Batch:
    """As vLLM's InputBatch."""

    block_table: list[Table]
    num_computed_tokens_cpu: npt.NDArray[np.int32]
    req_ids: list[str] = field(default_factory=list)

    @property
    def num_reqs(self) -> int:
        return len(self.req_ids)

    @property
    def req_id_to_index(self) -> dict[str, int]:
        return {request_id: row for row, request_id in enumerate(self.req_ids)}

    def keep(self, request_ids: set[str]) -> None:
        rows = [row for row, request_id in enumerate(self.req_ids) if request_id in request_ids]
        for table in self.block_table:
            table.keep(rows)
        self.req_ids = [self.req_ids[row] for row in rows]

    def add(self, request_id: str, block_ids: list[list[int]]) -> None:
        for table, blocks in zip(self.block_table, block_ids, strict=True):
            table.append(self.num_reqs, blocks)
        self.req_ids.append(request_id)


class PaperRunner:
    """What METok overrides of vLLM's runner."""

    def __init__(self, config: Any, settings: Settings) -> None:
        self.vllm_config = config
        self.max_num_tokens = settings.batched
        self.device = torch.device("cpu")
        groups = settings.stage_of_group
        tables = [Table(settings.running, settings.block_size) for _ in groups]
        self.input_batch = Batch(tables, np.zeros(settings.running, dtype=np.int32))
        self.requests: dict[str, RequestState] = {}
        self.num_scheduled_tokens = SimpleNamespace(np=np.zeros(settings.running, dtype=np.int32))
        self.lives = 0

    def get_model(self) -> Any:
        return SimpleNamespace(staged=SimpleNamespace(forget=lambda request_id: None))

    def _update_states(self, output: Any) -> None:
        self.copy_blocks(output.kv_cache_block_copies or ())
        for request_id in output.finished_req_ids:
            self.requests.pop(request_id, None)
        cached = output.scheduled_cached_reqs
        batch = self.input_batch
        stays = output.num_scheduled_tokens.keys() - cached.resumed_req_ids
        batch.keep(stays - output.finished_req_ids)
        for new in output.scheduled_new_reqs:
            blocks = [list(ids) for ids in new.block_ids]
            self.lives += 1
            state = RequestState(blocks, new.num_computed_tokens, self.lives, new.mm_features)
            self.requests[new.req_id] = state
            batch.add(new.req_id, blocks)
        for number, request_id in enumerate(cached.req_ids):
            state = self.requests[request_id]
            state.computed = cached.num_computed_tokens[number]
            blocks = cached.new_block_ids[number]
            if request_id in cached.resumed_req_ids:
                self.lives += 1
                state.life, state.block_ids = self.lives, [list(ids) for ids in blocks]
            elif blocks is not None:
                for held, ids in zip(state.block_ids, blocks, strict=True):
                    held.extend(ids)
            row = batch.req_id_to_index.get(request_id)
            if row is None:
                batch.add(request_id, state.block_ids)
            elif blocks is not None:
                for table, ids in zip(batch.block_table, blocks, strict=True):
                    table.append(row, ids)
        for row, request_id in enumerate(batch.req_ids):
            batch.num_computed_tokens_cpu[row] = self.requests[request_id].computed
            self.num_scheduled_tokens.np[row] = output.num_scheduled_tokens[request_id]
        for request_id, inputs in output.scheduled_encoder_inputs.items():
            for number in inputs:
                feature = self.requests[request_id].mm_features[number]
                assert feature.data is not None, f"{request_id} is encoded without data"

    def copy_blocks(self, copies: Any) -> None:
        raise NotImplementedError


class PaperWorker(StagedRunner, PaperRunner):
    """Runs steps on paper. `contents` has the names of what requests' tokens depend on, `cores` the
    tokens of each core that others may go on from."""

    def __init__(
        self,
        config: Any,
        settings: Settings,
        contents: dict[str, Names],
        cores: dict[str, int | None],
    ) -> None:
        super().__init__(config, settings)
        self.init_metok()
        self.metok_stage_of_group = settings.stage_of_group
        self.metok_group_of_layer = list(range(len(settings.stage_of_group)))
        self.contents = contents
        self.cores = cores
        self.buffer = np.zeros(settings.buffer, dtype=np.int64)
        self.cache = np.zeros((settings.blocks + 1) * settings.block_size, dtype=np.int64)

    def execute(self, output: Any) -> dict[str, list[set[int]]]:
        """Run a step; the blocks that it wrote to, by request and cache group."""
        self._update_states(output)
        assert output.num_scheduled_tokens.keys() == set(self.input_batch.req_ids)
        if not output.total_num_scheduled_tokens:
            return {}
        self.metok_build_stage_views()
        written: dict[str, list[set[int]]] = {name: [] for name in self.input_batch.req_ids}
        for gid, table in enumerate(self.input_batch.block_table):
            rows = [self._rows(gid, row) for row in range(self.input_batch.num_reqs)]
            names = [self._expected(gid, row, rows[row][1]) for row in range(len(rows))]
            for row, (positions, _) in enumerate(rows):
                slots = table.slots(row, positions)
                self.cache[slots] = names[row][positions]
                blocks = set((slots // table.block_size).tolist())
                written[self.input_batch.req_ids[row]].append(blocks)
            for row, (_, length) in enumerate(rows):
                read = self.cache[table.slots(row, np.arange(length))]
                lost = np.flatnonzero(read != names[row])
                request_id = self.input_batch.req_ids[row]
                assert not lost.size, f"{request_id} lost positions {lost} in cache group {gid}"
        self._make_compact()
        return written

    def copy_blocks(self, copies: Any) -> None:
        blocks = self.cache.reshape(-1, self.input_batch.block_table[0].block_size)
        for copy in copies:
            blocks[copy.dst_block_id] = blocks[copy.src_block_id]

    def _rows(self, gid: int, row: int) -> tuple[Names, int]:
        """Cache positions that a request's rows are written to, and how many it then has."""
        stage, geometry = self.metok_stage_of_group[gid], self.metok_geometry
        if geometry is not None:
            blocks = geometry.blocks(stage, self.max_num_tokens)
            parts = [np.arange(start_R[row], start_R[row] + n_R[row]) for n_R, start_R in blocks]
            positions = np.concatenate(parts)
            assert sum(len(part) for part in parts) == geometry.query_SR[stage][row]
            return positions, int(geometry.start_SR[stage][row] + geometry.query_SR[stage][row])
        view = self.metok_views.of(stage)
        computed = int(self.input_batch.num_computed_tokens_cpu[row])
        total = computed + int(self.num_scheduled_tokens.np[row])
        if view is None:
            return np.arange(computed, total), total
        first, last = view.slot_start_R1[row : row + 2].tolist()
        return view.position_N.numpy()[first:last], int(view.length_R[row])

    def _expected(self, gid: int, row: int, length: int) -> Names:
        """What the first `length` slots of a request hold in a group after this step's writes."""
        request_id = self.input_batch.req_ids[row]
        computed = int(self.input_batch.num_computed_tokens_cpu[row])
        plan = self.metok_plans.get(request_id)
        if plan is None:
            return np.bitwise_xor(self.contents[request_id][:length], gid) | np.int64(-1 << 63)
        stage, positions = self.metok_stage_of_group[gid], np.arange(length)
        begins = computed < plan.prompt_tokens and request_id not in self.metok_tables.hits
        if plan.unit or self.cores[request_id] is not None:
            if begins and plan.head_blocks[stage]:
                kinds = np.full(length, PREFILLED)
                return self._names(gid, request_id, kinds, positions)
            dropped = plan.prefill_dropped[stage]
            seen = plan.decode_dropped if computed >= plan.decode_from else plan.prefill_dropped
            cut = seen[stage] - dropped
            return self.shared_names(gid, request_id, plan)[cut:][:length]
        kinds = np.full(length, PREFILLED)
        if computed >= plan.prompt_tokens:
            end = plan.prompt_tokens - plan.decode_dropped[stage]
            if plan.evicts and stage > 0:
                kinds[plan.first_visual : end] = MOVED
            kinds[end:] = DECODED
        return self._names(gid, request_id, kinds, positions)

    def shared_names(self, gid: int, request_id: str, plan: PromptPlan) -> Names:
        """What a stage's slots hold once the prompt has run, and what was decoded after it."""
        content, core = self.contents[request_id], self.cores[request_id]
        stage, life = self.metok_stage_of_group[gid], self.requests[request_id].life
        names = prompt_names(gid, stage, plan, content, core, life)
        decoded = np.arange(len(names), len(content) - plan.prefill_dropped[stage])
        own = self._names(gid, request_id, np.full(len(decoded), DECODED), decoded)
        return np.concatenate([names, own])

    def _names(self, gid: int, request_id: str, kinds: Any, positions: Names) -> Names:
        life = self.requests[request_id].life
        names: Names = (((life << 8 | gid) << 2 | np.asarray(kinds)) << 16) + positions
        return names

    def _make_compact(self) -> None:
        geometry, self.metok_geometry = self.metok_geometry, None
        if geometry is None or geometry.staged is None:
            return
        for stage in range(1, NUM_STAGES):
            compact = self._compact_slots(geometry, stage)
            step = geometry.staged
            moved = (*step.evicted(), *step.visual_first(stage))
            for prompt, of_group in zip(moved, compact, strict=False):
                for gid, slots in of_group.items():
                    if prompt.plan.unit:
                        names = self.shared_names(gid, prompt.request_id, prompt.plan)
                        self.cache[slots.numpy()] = names[: len(slots)]
                        continue
                    positions = np.arange(len(slots)) + prompt.plan.first_visual
                    names = self._names(gid, prompt.request_id, MOVED, positions)
                    self.cache[slots.numpy()] = names
        for prompt in geometry.staged.prompts:
            self._use_buffer(prompt)

    def _use_buffer(self, prompt: StagedPrompt) -> None:
        """A chunk leaves its rows in the buffer; the last one finds those of all before."""
        if prompt.ends and not prompt.computed:
            return
        assert prompt.buffer_row is not None, "a chunk without rows in the buffer"
        rows = self.buffer[prompt.buffer_row :]
        life = self.requests[prompt.request_id].life
        if prompt.ends:
            expected = (life << 16) + np.arange(prompt.computed)
            assert (rows[: prompt.computed] == expected).all(), f"{prompt.request_id} lost rows"
        else:
            positions = np.arange(prompt.computed, prompt.computed + prompt.scheduled)
            rows[positions] = (life << 16) + positions
