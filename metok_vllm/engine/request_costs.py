"""Sizes of an engine from vLLM's configuration, and the start-up log of what requests cost."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm.logger import init_logger

from metok_vllm.config import METokConfig
from metok_vllm.engine.kv_cache.buffer_rows import buffer_size
from metok_vllm.engine.staging import is_staged
from metok_vllm.plan.costs import TEXT_TOKENS, EngineSizes, buffer_row_bytes, request_costs
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layers import StageLayout

logger = init_logger("vllm.metok")


def engine_sizes(config: METokConfig, vllm_config: Any) -> EngineSizes:
    """The sizes of an engine with a finished VllmConfig and METok's settings `config`.

    Raises ConfigError where the prefill buffer or the pruning layers do not fit.
    """
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    layout, buffer_rows = None, 0
    if is_staged(config):
        layers = model.hf_text_config.num_hidden_layers
        layout = StageLayout.of(config.pruning_layers, layers)
        buffer_rows = buffer_size(config, vllm_config)
    budget = int(scheduler.max_num_batched_tokens)
    kv_size = model.get_num_kv_heads(vllm_config.parallel_config) * model.get_head_size()
    return EngineSizes(
        video=partial(video_layout, model.hf_config),
        layout=layout,
        block_size=int(vllm_config.cache_config.block_size),
        chunk_tokens=min(budget, int(scheduler.long_prefill_token_threshold) or budget),
        block_rows=budget,
        max_model_len=int(model.max_model_len),
        buffer_rows=buffer_rows,
        row_bytes=buffer_row_bytes(
            model.get_hidden_size(), kv_size, model.dtype.itemsize, 3 if model.uses_mrope else 1
        ),
    )


def log_costs(config: METokConfig, vllm_config: Any) -> None:
    """Log the prefill buffer, and one line for each of a few numbers of frames."""
    engine = engine_sizes(config, vllm_config)
    logger.info(
        "METok: the prefill buffer has %d rows, %.1f MiB in each worker",
        engine.buffer_rows,
        engine.buffer_bytes / 2**20,
    )
    for cost in request_costs(config, engine):
        dense, metok = cost.dense, cost.metok
        logger.info(
            "METok: a request of %d frames and %d text tokens costs (dense / METok): "
            "%d / %d visual tokens, %d / %d prefill steps of at most %d tokens, row blocks of the "
            "last step %s, KV blocks %d / %d in the prefill and %d / %d in decoding%s",
            cost.frames,
            TEXT_TOKENS,
            dense.visual_tokens,
            metok.visual_tokens,
            dense.prefill_steps,
            metok.prefill_steps,
            engine.chunk_tokens,
            list(cost.row_blocks),
            cost.dense_blocks,
            cost.prefill_blocks,
            cost.dense_blocks,
            cost.decode_blocks,
            ""
            if dense.fits and metok.fits
            else f"; longer than {engine.max_model_len} tokens: "
            + ("dense" if metok.fits else "both"),
        )
