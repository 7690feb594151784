"""A decoder layer's cache, tagged with its pruning stage.

vLLM puts layers of equal specs into one cache group with one block table, so layers of different
stages get tables of their own over one shared pool.
Source of what is overridden: vllm/v1/kv_cache_interface.py, version 0.32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vllm.model_executor.layers.attention import Attention
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from metok_vllm.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSpec(FullAttentionSpec):
    """Full attention in the layers of one stage."""

    stage: int = 0

    @classmethod
    def merge(cls, specs: list[StageSpec]) -> StageSpec:
        # vLLM's own rebuilds the spec from its known fields and so would mix stages.
        assert all(spec == specs[0] for spec in specs), "layers of different stages do not merge"
        return specs[0]

    def is_uniform_with_collection(self, specs: Mapping[str, KVCacheSpec]) -> bool:
        """Whether all layers are of this stage: then one block table would do for all."""
        return all(
            isinstance(spec, StageSpec) and spec.stage == self.stage for spec in specs.values()
        )


class StagedAttention(Attention):
    """vLLM's attention layer with its stage in its cache spec."""

    metok_stage: int

    def get_kv_cache_spec(self, vllm_config: Any) -> StageSpec:
        spec = super().get_kv_cache_spec(vllm_config)
        if type(spec) is not FullAttentionSpec:
            raise ConfigError(
                f"METok's stages 2 and 3 need full attention in every layer; {self.layer_name} has "
                f"{type(spec).__name__}",
                "stages",
            )
        if self.attn_backend.forward_includes_kv_cache_update:
            raise ConfigError(
                f"METok's stages 2 and 3 cannot run with the attention backend "
                f"{self.attn_backend.get_name()}, which writes the cache inside its kernel; choose "
                "another with --attention-backend",
                "stages",
            )
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        return StageSpec(**values, stage=self.metok_stage)


def put_in_stage(attention: Attention, stage: int) -> None:
    """Make a finished attention layer one of `stage`."""
    attention.__class__ = StagedAttention
    attention.metok_stage = stage
