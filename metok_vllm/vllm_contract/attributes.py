"""Attributes of vLLM's objects that the engine and the models read or set, by class."""

from __future__ import annotations

_CORE, _WORKER = "vllm.v1.core.", "vllm.v1.worker."

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    _WORKER + "gpu_model_runner:GPUModelRunner": (
        *("requests", "input_batch", "kv_cache_config", "device", "compilation_config"),
        *("attn_groups", "num_scheduled_tokens", "get_model", "max_num_tokens", "max_model_len"),
        *("vllm_config", "model_config", "dtype"),
    ),
    _WORKER + "gpu_input_batch:InputBatch": (
        *("req_ids", "num_reqs", "req_id_to_index", "block_table", "num_computed_tokens_cpu"),
    ),
    _WORKER + "gpu_input_batch:CachedRequestState": (
        *("block_ids", "num_computed_tokens", "mm_features"),
    ),
    _WORKER + "block_table:MultiGroupBlockTable": ("block_tables",),
    _WORKER + "block_table:BlockTable": (
        *("num_blocks_per_row", "block_table", "block_size", "get_device_tensor"),
    ),
    _WORKER + "utils:AttentionGroup": (*("kv_cache_spec", "metadata_builders", "layer_names"),),
    "vllm.forward_context:ForwardContext": ("attn_metadata", "slot_mapping"),
    "vllm.v1.attention.backend:CommonAttentionMetadata": (
        *("num_reqs", "num_actual_tokens", "positions", "is_prefilling"),
        *("block_table_tensor", "slot_mapping"),
        *("query_start_loc", "query_start_loc_cpu", "max_query_len"),
        *("seq_lens", "seq_lens_cpu_upper_bound", "max_seq_len"),
        *("_num_computed_tokens_cache", "_token_to_req_indices_cache"),
    ),
    "vllm.model_executor.layers.attention:Attention": (
        *("layer_name", "impl", "kv_cache", "attn_backend"),
        *("num_heads", "num_kv_heads", "head_size", "head_size_v"),
    ),
    _CORE + "sched.scheduler:Scheduler": (
        *("vllm_config", "kv_cache_manager", "encoder_cache_manager", "requests", "running"),
    ),
    _CORE + "sched.output:SchedulerOutput": (
        *("finished_req_ids", "scheduled_new_reqs", "scheduled_cached_reqs"),
        *("preempted_req_ids", "total_num_scheduled_tokens", "scheduled_encoder_inputs"),
    ),
    _CORE + "sched.output:NewRequestData": ("req_id", "num_computed_tokens", "mm_features"),
    _CORE + "sched.output:CachedRequestData": (
        *("req_ids", "resumed_req_ids", "num_computed_tokens"),
    ),
    _CORE + "kv_cache_utils:KVCacheBlock": ("block_hash", "ref_cnt"),
    _CORE + "kv_cache_manager:KVCacheManager": (
        *("coordinator", "block_pool", "enable_caching", "empty_kv_cache_blocks"),
    ),
    _CORE + "kv_cache_coordinator:KVCacheCoordinator": ("single_type_managers",),
    _CORE + "single_type_kv_cache_manager:FullAttentionManager": (
        *("block_pool", "block_size", "req_to_blocks"),
    ),
    _CORE + "block_pool:BlockPool": ("num_gpu_blocks", "get_num_free_blocks"),
    "vllm.v1.request:Request": (
        *("request_id", "prompt_token_ids", "num_prompt_tokens", "mm_features"),
        *("sampling_params", "resumable", "skip_reading_prefix_cache"),
        *("num_computed_tokens", "num_in_flight_tokens", "cache_salt", "lora_request"),
    ),
    "vllm.config:VllmConfig": (
        *("model_config", "scheduler_config", "parallel_config", "cache_config"),
        *("compilation_config", "additional_config", "use_v2_model_runner", "speculative_config"),
    ),
    "vllm.config:SpeculativeConfig": ("method",),
    "vllm.config:ModelConfig": (
        *("hf_config", "hf_text_config", "model_arch_config", "multimodal_config"),
        *("registry", "architecture", "_model_info", "_architecture"),
    ),
}
