"""A VllmConfig that runs vLLM's V1 model runner, which METok's stages extend.

vLLM reads its choice from the environment, in several processes. A variable set there would choose
for every other engine of this process too.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig


class StagedVllmConfig(VllmConfig):  # type: ignore[misc]
    """Travels to all processes of the engine as it is."""

    @property
    def use_v2_model_runner(self) -> bool:
        return False


def adopt(vllm_config: Any) -> None:
    """Make a VllmConfig one for stages 2 and 3, in place: vLLM is in the middle of building it."""
    assert type(vllm_config) in (VllmConfig, StagedVllmConfig), type(vllm_config)
    vllm_config.__class__ = StagedVllmConfig
