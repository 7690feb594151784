"""The parts of vLLM's classes that METok's mixins use, for the type checker.

A mixin has one of these as its base while types are checked, and `object` at run time. Their
attributes are checked on the installed vLLM by `attributes.py`, their methods by `methods.py`.
"""

from __future__ import annotations

from typing import Any

import torch


class RunnerSurface:
    """vllm.v1.worker.gpu_model_runner.GPUModelRunner."""

    requests: dict[str, Any]
    input_batch: Any
    kv_cache_config: Any
    device: torch.device
    compilation_config: Any
    attn_groups: Any
    num_scheduled_tokens: Any
    max_num_tokens: int
    max_model_len: int
    vllm_config: Any
    model_config: Any
    dtype: torch.dtype

    def get_model(self) -> Any:
        raise NotImplementedError

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def profile_run(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def initialize_kv_cache(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def _update_states(self, scheduler_output: Any) -> Any:
        raise NotImplementedError

    def _get_slot_mappings(self, *args: Any) -> Any:
        raise NotImplementedError

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class SchedulerSurface:
    """vllm.v1.core.sched.scheduler.Scheduler."""

    vllm_config: Any
    kv_cache_manager: Any
    encoder_cache_manager: Any
    requests: dict[str, Any]
    running: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def add_request(self, request: Any) -> None:
        raise NotImplementedError

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def _try_schedule_encoder_inputs(self, *args: Any) -> Any:
        raise NotImplementedError

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class WorkerSurface:
    """vllm.v1.worker.gpu_worker.Worker."""

    model_runner: Any

    def sleep(self, level: int = 1) -> None:
        raise NotImplementedError


class ModelSurface:
    """A video model of vLLM, an nn.Module with `embed_multimodal` and a `language_model`."""

    config: Any
    language_model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        raise NotImplementedError

    def load_weights(self, weights: Any) -> Any:
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: object) -> Any:
        raise NotImplementedError


class MropeSurface(ModelSurface):
    """A video model whose decoder has rotary positions with three axes."""

    def get_encoder_cudagraph_config(self) -> Any:
        raise NotImplementedError

    def get_mrope_input_positions(self, input_tokens: Any, mm_features: Any) -> Any:
        raise NotImplementedError

    def embed_input_ids(
        self, input_ids: Any, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> Any:
        raise NotImplementedError


class InfoSurface:
    """vllm.multimodal.processing.context.BaseProcessingInfo of a model."""

    def get_hf_config(self) -> Any:
        raise NotImplementedError


class ProcessorSurface:
    """vllm.multimodal.processing.processor.BaseMultiModalProcessor."""

    info: Any

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        raise NotImplementedError

    def _get_mm_hashes(self, inputs: Any) -> Any:
        raise NotImplementedError

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        raise NotImplementedError

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        raise NotImplementedError

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        raise NotImplementedError

    def _get_prompt_updates(self, mm_items: Any, kwargs: Any, out_mm_kwargs: Any) -> Any:
        raise NotImplementedError
