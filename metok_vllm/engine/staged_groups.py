"""vLLM's block tables and attention groups with the rows and lengths of their stages.

Source of what is overridden: vllm/v1/worker/block_table.py and utils.py, version 0.32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder
from vllm.v1.worker.block_table import MultiGroupBlockTable
from vllm.v1.worker.utils import AttentionGroup

from metok_vllm.engine.kv_cache.spec import StageSpec
from metok_vllm.engine.stage_views import StageView, StageViews


class StagedBlockTables(MultiGroupBlockTable):
    """Computes the slots of each cache group from its stage's rows and positions."""

    metok_views: Callable[[], list[StageView | None]]

    @classmethod
    def adopt(cls, tables: Any, views: Callable[[], list[StageView | None]]) -> None:
        """Change vLLM's tables in place; `views` gives each group's view of the prepared batch."""
        tables.__class__ = cls
        tables.metok_views = views

    def compute_slot_mapping(
        self, num_reqs: int, query_start_loc: Tensor, positions: Tensor
    ) -> None:
        for table, view in zip(self.block_tables, self.metok_views(), strict=True):
            if view is None:
                table.compute_slot_mapping(num_reqs, query_start_loc, positions)
            else:
                table.compute_slot_mapping(num_reqs, view.slot_start_R1, view.position_N)


class SharingCPUBuilder(CPUAttentionMetadataBuilder):
    """A builder whose metadata the cache groups of one spec share, as vLLM's GPU builders do.

    The groups of a stage have the same lengths, so only their block tables differ.
    """

    supports_update_block_table = True

    def update_block_table(self, metadata: Any, blk_table: Tensor, slot_mapping: Tensor) -> Any:
        return replace(metadata, block_table=blk_table, slot_mapping=slot_mapping)


class StagedAttentionGroup(AttentionGroup):
    """Builds its metadata from its stage's view of the batch."""

    metok_views: StageViews

    @classmethod
    def adopt(cls, group: Any, views: StageViews) -> None:
        """Change one of vLLM's groups in place."""
        assert isinstance(group.kv_cache_spec, StageSpec), group.layer_names
        group.__class__ = cls
        group.metok_views = views
        for builder in group.metadata_builders:
            if type(builder) is CPUAttentionMetadataBuilder:
                builder.__class__ = SharingCPUBuilder

    def get_metadata_builder(self, ubatch_id: int = 0) -> Any:
        builder = super().get_metadata_builder(ubatch_id)
        view = self.metok_views.of(self.kv_cache_spec.stage)
        # vLLM would put a block table of all requests into metadata of those with rows.
        shares = view is None or view.request_R is None
        builder.supports_update_block_table = shares and type(builder).supports_update_block_table
        return builder

    def build_metadata(self, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        view = self.metok_views.of(self.kv_cache_spec.stage)
        if view is not None:
            self.metok_views.keep_common(common_attn_metadata)
            common_attn_metadata = view.of_metadata(common_attn_metadata)
        return super().build_metadata(common_attn_metadata, *args, **kwargs)
