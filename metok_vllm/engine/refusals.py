"""Settings of vLLM that stages 2 and 3 cannot run with, checked at start-up.

The server does not start with one of them: its answers would be wrong without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from metok_vllm.errors import ConfigError

RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def check(vllm_config: Any) -> None:
    """Raise ConfigError for the first setting of vLLM that stages 2 and 3 cannot honour."""
    for flag, reason in _conflicts(vllm_config):
        raise ConfigError(
            f"{flag} cannot be combined with METok's stages 2 and 3: {reason}. Leave it out, or "
            "run stage 1 alone (--metok-stages '[1]')",
            "stages",
        )


def check_runner(name: str, *, supported: bool) -> None:
    """Raise RuntimeError where a worker runs with another model runner than METok extends."""
    if not supported:
        raise RuntimeError(
            f"METok's stages 2 and 3 extend vLLM's V1 model runner, and this worker has {name}: "
            f"set {RUNNER_VARIABLE}=0, or run stage 1 alone (--metok-stages '[1]')"
        )


def _conflicts(vllm_config: Any) -> Iterator[tuple[str, str]]:
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    cache, multimodal = vllm_config.cache_config, vllm_config.model_config.multimodal_config
    if scheduler.disable_hybrid_kv_cache_manager:
        yield (
            "--disable-hybrid-kv-cache-manager",
            "every stage needs a block table of its own",
        )
    if vllm_config.speculative_config is not None:
        yield "--speculative-config", "a draft model would read caches that were made shorter"
    if vllm_config.lora_config is not None:
        yield "--enable-lora", "adapters are mapped to rows that pruning removes"
    for name, flag in (
        ("pipeline_parallel_size", "--pipeline-parallel-size"),
        ("decode_context_parallel_size", "--decode-context-parallel-size"),
        ("prefill_context_parallel_size", "--prefill-context-parallel-size"),
    ):
        if (getattr(parallel, name) or 1) > 1:
            yield flag, "a stage's tokens must all be on the ranks that run its layers"
    if parallel.use_ubatching:
        yield "--enable-dbo", "micro-batches cut the rows of a step apart"
    if vllm_config.kv_transfer_config is not None:
        yield "--kv-transfer-config", "connectors move blocks by token, not by stage"
    if cache.kv_offloading_size is not None:
        yield "--kv-offloading-size", "offloading moves blocks by token, not by stage"
    if vllm_config.ec_transfer_config is not None:
        yield "--ec-transfer-config", "a video's events stay with the worker that encoded it"
    if cache.kv_sharing_fast_prefill:
        yield "--kv-sharing-fast-prefill", "both change which rows later layers run on"
    if multimodal is not None and multimodal.mm_processor_cache_type == "shm":
        yield (
            "--mm-processor-cache-type shm",
            "the scheduler must see what a request asks of its video",
        )
    if vllm_config.model_config.runner_type != "generate":
        yield f"--runner {vllm_config.model_config.runner_type}", "pooling needs every row"
    if vllm_config.compilation_config.pass_config.fuse_attn_quant:
        yield "fuse_attn_quant in --compilation-config", "it brings back full CUDA graphs"
    if os.environ.get("VLLM_USE_BREAKABLE_CUDAGRAPH", "0") == "1":
        yield "VLLM_USE_BREAKABLE_CUDAGRAPH=1", "a step with a METok prompt runs outside of graphs"
    if vllm_config.watermark_config is not None:
        yield "--watermark-config", "it needs vLLM's V2 model runner, and METok extends the V1 one"
    if vllm_config.attention_config.hisparse_config is not None:
        yield (
            "hisparse_config in --attention-config",
            "it needs vLLM's V2 model runner, and METok extends the V1 one",
        )
    if scheduler.scheduler_cls is not None:
        yield "--scheduler-cls", "METok brings a scheduler"
    if parallel.worker_cls != "auto":
        yield "--worker-cls", "METok brings a worker"
    if os.environ.get(RUNNER_VARIABLE, "") not in ("", "0"):
        yield f"{RUNNER_VARIABLE}={os.environ[RUNNER_VARIABLE]}", "METok extends vLLM's V1 runner"
