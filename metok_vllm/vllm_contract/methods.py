"""Methods of vLLM that METok overrides or calls for every model, with their parameters."""

from __future__ import annotations

# What stages 2 and 3 override or call in vLLM's core.
STAGING: dict[str, tuple[str, ...]] = {
    "vllm.model_executor.layers.attention:Attention.get_kv_cache_spec": ("vllm_config",),
    "vllm.config:VllmConfig.use_v2_model_runner.fget": (),
    "vllm.v1.kv_cache_interface:FullAttentionSpec.merge": ("specs",),
    "vllm.v1.kv_cache_interface:FullAttentionSpec.is_uniform_with_collection": ("kv_cache_specs",),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register": (
        "kvcache_spec_cls",
        "manager_class",
        "uniform_type_base_spec",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.get_num_blocks_to_allocate": (
        "request_id",
        "num_tokens",
        "new_computed_blocks",
        "total_computed_tokens",
        "num_local_computed_tokens",
        "num_tokens_main_model",
        "apply_admission_cap",
        "prefill_end",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.allocate_new_blocks": (
        "request_id",
        "num_tokens",
        "num_tokens_main_model",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.add_local_computed_blocks": (
        "request_id",
        "new_computed_blocks",
        "num_local_computed_tokens",
        "num_external_computed_tokens",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.cache_blocks": (
        "request",
        "num_tokens",
        "retention_interval",
        "replay_boundaries",
    ),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager.pop_blocks_for_free": (
        "request_id",
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots": (
        "request",
        "num_new_tokens",
        "num_new_computed_tokens",
        "new_computed_blocks",
        "num_lookahead_tokens",
        "num_external_computed_tokens",
        "delay_cache_blocks",
        "num_encoder_tokens",
        "full_sequence_must_fit",
        "reserved_blocks",
        "has_scheduled_reqs",
        "skip_zeroing_group_ids",
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.cache_blocks": (
        "request",
        "num_computed_tokens",
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_computed_blocks": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.prefix_cache_lookup_enabled": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.free": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.pop_blocks_for_free": ("request",),
    "vllm.v1.core.kv_cache_manager:KVCacheManager.reset_prefix_cache": (),
    "vllm.v1.core.kv_cache_utils:KVCacheBlock.set_block_hash": ("block_hash", "num_tokens"),
    "vllm.v1.core.kv_cache_utils:KVCacheBlock.reset_hash": (),
    "vllm.v1.core.block_pool:BlockPool.touch": ("blocks",),
    "vllm.v1.core.block_pool:BlockPool.free_blocks": ("ordered_blocks",),
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": ("request",),
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": ("throttle_prefills",),
    "vllm.v1.core.sched.scheduler:Scheduler._try_schedule_encoder_inputs": (
        "request",
        "num_computed_tokens",
        "num_new_tokens",
        "encoder_compute_budget",
        "shift_computed_tokens",
    ),
    "vllm.v1.core.sched.scheduler:Scheduler._free_request": ("request", "delay_free_blocks"),
    "vllm.v1.worker.gpu_worker:Worker.sleep": ("level",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.load_model": (
        "load_dummy_weights",
        "model",
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.profile_run": ("randomize_inputs",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.initialize_kv_cache": (
        "kv_cache_config",
        "is_profiling",
        "kv_cache_allocation_context",
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_states": ("scheduler_output",),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_slot_mappings": (
        "num_tokens_padded",
        "num_reqs_padded",
        "num_tokens_unpadded",
        "ubatch_slices",
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._model_forward": (
        "input_ids",
        "positions",
        "intermediate_tensors",
        "inputs_embeds",
        "model_kwargs",
    ),
    "vllm.v1.attention.backend:AttentionMetadataBuilder.build": (
        "common_prefix_len",
        "common_attn_metadata",
        "fast_build",
    ),
    "vllm.v1.attention.backend:AttentionMetadataBuilder.update_block_table": (
        "metadata",
        "blk_table",
        "slot_mapping",
    ),
    "vllm.v1.worker.utils:AttentionGroup.get_metadata_builder": ("ubatch_id",),
    "vllm.v1.worker.utils:AttentionGroup.build_metadata": (
        "common_attn_metadata",
        "ubatch_idx",
        "common_prefix_len",
        "kwargs",
    ),
    "vllm.v1.worker.block_table:MultiGroupBlockTable.compute_slot_mapping": (
        "num_reqs",
        "query_start_loc",
        "positions",
    ),
    "vllm.v1.worker.block_table:BlockTable.compute_slot_mapping": (
        "num_reqs",
        "query_start_loc",
        "positions",
    ),
    "vllm.v1.worker.gpu_worker:Worker.init_device": (),
}

# Every method of vLLM that the engine side overrides, with its parameters.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor.apply": ("inputs", "timing_ctx"),
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor.get_dummy_inputs": (
        "seq_len",
        "mm_counts",
        "mm_options",
    ),
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor._get_mm_hashes": ("inputs",),
    "vllm.multimodal.processing.processor:BaseMultiModalProcessor."
    "_get_cache_missing_processor_kwargs": ("inputs", "mm_is_cached"),
    "vllm.multimodal.processing.inputs:ProcessorInputs.get_mm_hashes": (
        "model_id",
        "hash_algorithm",
    ),
    "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config": (
        "vllm_config",
    ),
    "vllm.multimodal.video:VideoLoader.load_bytes": ("data", "kwargs"),
    **STAGING,
}
