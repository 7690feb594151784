"""vLLM's model runner with METok's stages: each cache group gets its stage's rows and lengths.

Slots, lengths and metadata of all stages are computed before the forward pass, so nothing in it
waits for the device. A step without a METok prompt runs vLLM's own, possibly compiled, decoder.
Source of what is overridden: vllm/v1/worker/gpu_model_runner.py and utils.py, version 0.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from metok_vllm.config import METokConfig
from metok_vllm.devices import array_on
from metok_vllm.engine.kv_cache.buffer_rows import buffer_size
from metok_vllm.engine.kv_cache.spec import put_in_stage
from metok_vllm.engine.request_plans import ATTRIBUTE, StagedSchedulerOutput
from metok_vllm.engine.request_tables import RequestTables, begun_tokens
from metok_vllm.engine.row_blocks import build_blocks, slots_of
from metok_vllm.engine.stage_views import StageView, StageViews
from metok_vllm.engine.staged_groups import StagedAttentionGroup, StagedBlockTables
from metok_vllm.engine.step import BatchGeometry, BatchPlans
from metok_vllm.errors import ConfigError
from metok_vllm.models.cache_writer import StagedInput
from metok_vllm.plan.layers import NUM_STAGES
from metok_vllm.plan.prompt import PromptPlan

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import RunnerSurface
else:
    RunnerSurface = object


# Memory that a prompt's last chunk needs per row of the earlier ones, in hidden states: hidden
# state and residual twice while rows are selected, then queries, keys and values of row blocks.
COPIES_OF_ROWS = 9


class StagedRunner(RunnerSurface):
    """Mixed in before vLLM's V1 runner of a platform. Names of its own begin with `metok_`."""

    def init_metok(self) -> None:
        """Set the attributes of this class; called once vLLM's `__init__` has run."""
        self.metok_plans: dict[str, PromptPlan] = {}
        self.metok_preempted: set[str] = set()
        self.metok_tables = RequestTables(self)
        self.metok_views = StageViews()
        self.metok_output: StagedSchedulerOutput | None = None
        self.metok_batch: BatchPlans | None = None
        self.metok_geometry: BatchGeometry | None = None
        self.metok_scheduled = False  # a step with tokens is being prepared, no dummy run

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        staged = self.get_model().staged
        for number, layer in enumerate(staged.layers):
            put_in_stage(staged.attention_of(layer), staged.layout.stage_of_layer(number))
        config = METokConfig.from_dict(self.model_config.hf_config.metok)
        staged.allocate_buffer(buffer_size(config, self.vllm_config), self.dtype, self.device)

    def profile_run(self, *args: Any, **kwargs: Any) -> None:
        """Measured with the memory that the longest prompt's last chunk needs on top."""
        staged = self.get_model().staged
        rows, hidden_BD = min(self.max_model_len, staged.buffer.num_rows), staged.buffer.hidden_BD
        # vLLM takes the peak of what is allocated, used or not.
        joined = hidden_BD.new_empty((COPIES_OF_ROWS * rows, hidden_BD.shape[1]))
        # Keys and values of a stage are written again at its end, where later turns go on from.
        kv = staged.attention_of(staged.layers[0])
        width = (
            max(staged.layout.stage_sizes[1:]) * kv.num_kv_heads * (kv.head_size + kv.head_size_v)
        )
        written_again = hidden_BD.new_empty((rows, width))
        super().profile_run(*args, **kwargs)
        del joined, written_again

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        super().initialize_kv_cache(*args, **kwargs)
        mode = self.compilation_config.cudagraph_mode
        if mode is not None and mode.has_full_cudagraphs():
            # A setting applied after the configuration hook.
            raise ConfigError(
                f"cudagraph_mode {mode.name} replays one set of sequence lengths, and METok's "
                "stages 2 and 3 have four: set it to PIECEWISE",
                "stages",
            )
        for groups in self.attn_groups:
            for group in groups:
                StagedAttentionGroup.adopt(group, self.metok_views)
        StagedBlockTables.adopt(self.input_batch.block_table, self.metok_build_stage_views)
        groups = self.kv_cache_config.kv_cache_groups
        staged = self.get_model().staged
        group_of_name = {
            name: gid for gid, group in enumerate(groups) for name in group.layer_names
        }
        self.metok_group_of_layer = [
            group_of_name[staged.attention_of(layer).layer_name] for layer in staged.layers
        ]
        self.metok_stage_of_group = [group.kv_cache_spec.stage for group in groups]

    def _update_states(self, scheduler_output: Any) -> Any:
        staged = self.get_model().staged
        output: StagedSchedulerOutput = getattr(scheduler_output, ATTRIBUTE)
        self.metok_output = output
        for request_id in scheduler_output.finished_req_ids:
            self.metok_plans.pop(request_id, None)
            self.metok_tables.forget(request_id)
            staged.forget(request_id)
        begun = begun_tokens(scheduler_output)
        if begun:
            # A new request may have the id of one that has just ended; a resumed one may go on from
            # a prompt, or begin its own again.
            self.metok_batch = None
        resumed = scheduler_output.scheduled_cached_reqs.resumed_req_ids
        preempted = scheduler_output.preempted_req_ids or set()
        self.metok_preempted |= preempted
        self.metok_preempted -= resumed | scheduler_output.finished_req_ids
        for request_id in preempted | resumed:
            staged.forget(request_id)
        self.metok_plans.update(output.plans)
        for request_id, features in output.features.items():
            self.requests[request_id].mm_features = features
        self.metok_tables.begin(begun)
        self.metok_tables.trim(output.trims)
        result = super()._update_states(scheduler_output)
        self.metok_tables.cut_heads()
        self.metok_scheduled = scheduler_output.total_num_scheduled_tokens > 0
        return result

    def _get_slot_mappings(
        self,
        num_tokens_padded: int,
        num_reqs_padded: int,
        num_tokens_unpadded: int,
        ubatch_slices: Any = None,
    ) -> Any:
        by_gid, by_layer = super()._get_slot_mappings(
            num_tokens_padded, num_reqs_padded, num_tokens_unpadded, ubatch_slices
        )
        if self.metok_scheduled and self.metok_geometry is not None:
            # Every layer needs as many slots as rows; vLLM's are padded.
            for gid, group in enumerate(self.kv_cache_config.kv_cache_groups):
                view = self.metok_views.of(self.metok_stage_of_group[gid])
                rows = num_tokens_unpadded if view is None else view.rows
                by_gid[gid] = by_gid[gid][:rows]
                by_layer.update(dict.fromkeys(group.layer_names, by_gid[gid]))
        return by_gid, by_layer

    def metok_build_stage_views(self) -> list[StageView | None]:
        """The view of each cache group on the batch that was just prepared; None: vLLM's own."""
        self.metok_views.clear()
        if self.metok_scheduled and self.metok_plans:
            self._build_views()
        return [self.metok_views.of(stage) for stage in self.metok_stage_of_group]

    def _build_views(self) -> None:
        """Views of all stages; none for a batch without plans."""
        ids = self.input_batch.req_ids
        batch = self.metok_batch
        if batch is None or len(batch.request_ids) != len(ids) or batch.request_ids != tuple(ids):
            plans = [self.metok_plans.get(request_id) for request_id in ids]
            batch = BatchPlans.of(ids, plans, self.metok_tables.hits) if any(plans) else None
            self.metok_batch = batch
        if batch is None:
            return
        count = self.input_batch.num_reqs
        computed_R = self.input_batch.num_computed_tokens_cpu[:count]
        scheduled_R = self.num_scheduled_tokens.np[:count]
        assert self.metok_output is not None
        geometry = BatchGeometry.of(batch, computed_R, scheduled_R, self.metok_output.buffer_rows)
        if geometry.staged is not None:
            self.metok_geometry = geometry
        staged = geometry.staged
        # Where no prompt ends, stages that decode with equal lengths have equal rows as well.
        ends = staged is not None and any(prompt.ends for prompt in staged.prompts)
        equal = geometry.decodes and not ends
        for stage in range(1, NUM_STAGES):
            first = batch.decodes_as[stage] if equal else stage
            if staged is not None:
                first = max(first, 1)  # stage 0 runs the chunks
            view = self.metok_views.of(first)
            if first == stage and geometry.query_SR[stage].any():
                # Of a stage in row blocks, vLLM builds the metadata of the first one.
                query_R, start_R = geometry.blocks(stage, self.max_num_tokens)[0]
                view = StageView.of(query_R, start_R, self.device, staged is None)
            self.metok_views.put(stage, view)

    def metok_staged_input(self, geometry: BatchGeometry) -> StagedInput:
        """What the staged decoder needs of this step, beside the forward context."""
        assert geometry.staged is not None
        stages = range(NUM_STAGES)
        blocks = [build_blocks(self, geometry, stage) if stage else [] for stage in stages]
        slots = [self._compact_slots(geometry, stage) for stage in stages]
        return StagedInput(geometry.staged, slots, self.metok_group_of_layer, blocks)

    def _compact_slots(self, geometry: BatchGeometry, stage: int) -> list[dict[int, Tensor]]:
        """Slots that rows are written to again, by cache group, of each prompt with such rows."""
        step = geometry.staged
        assert step is not None
        if stage == 0:
            return []
        slots = []
        gids = [gid for gid, s in enumerate(self.metok_stage_of_group) if s == stage]
        for prompt in (*step.evicted(), *step.visual_first(stage)):
            plan = prompt.plan
            first = 0 if plan.unit else plan.first_visual
            dropped = plan.prefill_dropped if plan.unit else plan.decode_dropped
            end = plan.prompt_tokens - dropped[stage]
            position = np.arange(first, end, dtype=np.int64)
            row = self.input_batch.req_id_to_index[prompt.request_id]
            of_prompt = {}
            for gid in gids:
                table = self.input_batch.block_table[gid]
                of_prompt[gid] = array_on(slots_of(table, row, position), self.device)
            slots.append(of_prompt)
        return slots

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        geometry, self.metok_geometry, self.metok_scheduled = self.metok_geometry, None, False
        if geometry is not None:
            kwargs["metok_staged"] = self.metok_staged_input(geometry)
        self.metok_views.clear()  # a dummy run may come before the next step
        return super()._model_forward(*args, **kwargs)

    def metok_evictor_state(self) -> dict[str, Any]:
        """JSON-ready state after the last step, from this worker's own block tables.

        `blocks` are those of each request by cache group, `stage_of_group` the stage of each group,
        `tokens` those computed before the last step, the prompt's included.
        """
        output = self.metok_output
        return {
            "total_blocks": output.total_blocks if output else None,
            "free_blocks": output.free_blocks if output else None,
            "freed_blocks": output.freed_blocks if output else 0,
            "prefix_hits": output.prefix_hits if output else 0,
            "prefix_tokens": output.prefix_tokens if output else 0,
            "prefix_records": output.prefix_records if output else 0,
            "stage_of_group": list(self.metok_stage_of_group),
            "requests": {
                request_id: {
                    "metok": request_id in self.metok_plans,
                    "tokens": int(state.num_computed_tokens),
                    "blocks": [len(blocks) for blocks in state.block_ids],
                }
                for request_id, state in self.requests.items()
                # vLLM's worker keeps the block ids of a preempted request until it resumes.
                if request_id not in self.metok_preempted
            },
        }
