"""Settings of vLLM that stages 2 and 3 need: scheduler, worker, V1 runner, piecewise graphs."""

from __future__ import annotations

import dataclasses
from typing import Any

from vllm.config import CUDAGraphMode, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from metok_vllm.config import METokConfig
from metok_vllm.engine import refusals
from metok_vllm.plan.families import deepstack_levels
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.prompt import EVICT, PRUNE

logger = init_logger("vllm.metok")

SCHEDULER = "metok_vllm.engine.scheduler.make_scheduler"
CPU_WORKER = "metok_vllm.engine.cpu_worker.MetokCPUWorker"
CUDA_WORKER = "metok_vllm.engine.cuda_worker.MetokCUDAWorker"
CUDA_ENCODING_WORKER = "metok_vllm.engine.cuda_worker.MetokEncodingCUDAWorker"


class StagedVllmConfig(VllmConfig):
    """A VllmConfig for vLLM's V1 model runner, which METok's stages extend.

    vLLM reads its choice from the environment, in several processes. A variable set there would
    choose for every other engine of this process too; this class reaches only its own engine.
    """

    @property
    def use_v2_model_runner(self) -> bool:
        return False


def is_staged(config: METokConfig) -> bool:
    """Whether the decoder runs in stages under this configuration."""
    return PRUNE in config.stages or EVICT in config.stages


def stage(config: METokConfig, vllm_config: Any) -> METokConfig:
    """Prepare a VllmConfig; the configuration with its layer boundaries filled in.

    Raises ConfigError for boundaries that do not fit and for what cannot be combined.
    """
    refusals.check(vllm_config)
    num_layers = vllm_config.model_config.hf_text_config.num_hidden_layers
    levels = deepstack_levels(vllm_config.model_config.hf_config)
    layout = StageLayout.of(config.pruning_layers, num_layers, max(levels, 1))
    report = logger.warning if layout.waste_percent else logger.info
    report(
        "METok: stages begin at layers %s of %d; %d cache groups of %d layers, %.1f %% of the KV "
        "cache wasted",
        list(layout.boundaries),
        num_layers,
        layout.num_groups,
        layout.layers_per_group,
        layout.waste_percent,
    )
    vllm_config.scheduler_config.scheduler_cls = SCHEDULER
    on_cpu = current_platform.is_cpu()
    vllm_config.parallel_config.worker_cls = CPU_WORKER if on_cpu else CUDA_WORKER
    if not on_cpu:
        _without_full_graphs(vllm_config.compilation_config)
    return dataclasses.replace(config, pruning_layers=layout.boundaries)


def encode_only(vllm_config: Any) -> None:
    """Prepare a VllmConfig for stage 1 alone. A worker that the user chose stays."""
    parallel = vllm_config.parallel_config
    if current_platform.is_cuda_alike() and parallel.worker_cls == "auto":
        parallel.worker_cls = CUDA_ENCODING_WORKER


def use_v1_runner(vllm_config: Any) -> None:
    """Change a VllmConfig in place, while vLLM builds it."""
    assert type(vllm_config) in (VllmConfig, StagedVllmConfig), type(vllm_config)
    vllm_config.__class__ = StagedVllmConfig


def _without_full_graphs(compilation: Any) -> None:
    """Full CUDA graphs replay one set of sequence lengths; stages have four."""
    mode = compilation.cudagraph_mode
    if mode is None or mode.has_full_cudagraphs():
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
