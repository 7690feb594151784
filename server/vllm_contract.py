"""What the server relies on in vLLM: methods with their parameters, and attributes.

`metok serve` compares it with the installed vLLM before it starts. The lists of the engine and the
models, and the check, are in `metok_vllm/vllm_contract/`.
"""

from __future__ import annotations

_CHAT = "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat."
_REQUEST = "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest."
_CACHE = "vllm.multimodal.cache.lru:LruKeyReplicatedSenderCache."
_LAUNCH = "vllm.entrypoints.launchers."
_MEDIA = "vllm.multimodal.media:MediaConnector."
_SERVE = "vllm.entrypoints.serve."

# Methods that the server overrides or calls.
SIGNATURES: dict[str, tuple[str, ...]] = {
    _CHAT + "render_chat_request": ("request",),
    _CHAT + "chat_completion_full_generator": (
        "request",
        "result_generator",
        "request_id",
        "model_name",
        "conversation",
        "tokenizer",
        "request_metadata",
        "parser",
        "mm_token_counts",
    ),
    _CHAT + "chat_completion_stream_generator": (
        "request",
        "result_generator",
        "request_id",
        "model_name",
        "conversation",
        "tokenizer",
        "request_metadata",
        "chat_template_kwargs",
        "mm_token_counts",
    ),
    _CHAT + "create_streaming_error_response": ("message", "err_type", "status_code", "param"),
    _CHAT + "_extract_prompt_len": ("prompt",),
    _CHAT + "_is_model_supported": ("model_name",),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.show_available_models": (),
    "vllm.entrypoints.openai.chat_completion.api_router:create_chat_completion": (
        "request",
        "raw_request",
    ),
    "vllm.entrypoints.generate.base.protocol:validate_request_mm_kwargs": (
        "mm_processor_kwargs",
        "media_io_kwargs",
        "trust_request_mm_kwargs",
    ),
    _SERVE + "utils.api_utils:validate_json_request": ("raw_request",),
    _SERVE + "utils.api_utils:cli_env_setup": (),
    "vllm.entrypoints.openai.responses.api_router:create_responses": ("request", "raw_request"),
    _SERVE + "exception_handling.handlers.validation:clean_loc_for_param": ("loc",),
    _SERVE + "exception_handling.handlers.vllm_error:engine_error_handler": ("req", "exc"),
    _REQUEST + "to_sampling_params": ("max_tokens", "default_sampling_params"),
    _REQUEST + "to_beam_search_params": ("max_tokens", "default_sampling_params"),
    _CACHE + "get_and_update_item": ("mm_item", "mm_hash"),
    _CACHE + "cache_if_fits": ("cache", "key", "value"),
    _CACHE + "clear_cache": (),
    _MEDIA + "load_from_url": ("url", "media_io", "fetch_timeout"),
    _MEDIA + "load_from_url_async": ("url", "media_io", "fetch_timeout"),
    _MEDIA + "_get_cached_bytes": ("url",),
    _MEDIA + "_put_cached_bytes": ("url", "data"),
    "vllm.multimodal.media.video:VideoMediaIO.load_bytes": ("data",),
    "vllm.multimodal.media.video:VideoMediaIO.load_base64": ("media_type", "data"),
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router": ("app",),
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state": (
        "engine_client",
        "state",
        "args",
    ),
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown": ("timeout",),
    "vllm.v1.engine.core_client:AsyncMPClient.call_utility_all_async": ("method", "args"),
    "vllm.v1.engine.core:EngineCore.collective_rpc": ("method", "timeout", "args", "kwargs"),
    "vllm.v1.engine.async_llm:AsyncLLM.check_health": (),
    "vllm.v1.engine.async_llm:AsyncLLM.add_request": (
        "request_id",
        "prompt",
        "params",
        "arrival_time",
        "lora_request",
        "tokenization_kwargs",
        "trace_headers",
        "priority",
        "data_parallel_rank",
        "session_id",
        "prompt_text",
        "reasoning_ended",
        "reasoning_parser_kwargs",
        "kv_hints",
    ),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": (
        "prompt",
        "sampling_params",
        "request_id",
        "prompt_text",
        "lora_request",
        "tokenization_kwargs",
        "trace_headers",
        "priority",
        "data_parallel_rank",
        "session_id",
        "kv_hints",
        "reasoning_ended",
        "reasoning_parser_kwargs",
    ),
    _LAUNCH + "launcher:setup_server": ("args", "reuse_port"),
    _LAUNCH + "api_server.entry:run_server_worker": (
        "listen_address",
        "sock",
        "args",
        "client_config",
        "uvicorn_kwargs",
    ),
    _LAUNCH + "cli_args:make_arg_parser": ("parser",),
    _LAUNCH + "cli_args:validate_parsed_serve_args": ("args",),
    "vllm.entrypoints.cli.serve:ServeSubcommand.cmd": ("args",),
    "vllm.logger:configure_logging_from_args": ("args",),
    "vllm.utils.system_utils:decorate_logs": ("process_name", "skip_if_decorated"),
}

# Attributes that the server reads or sets, by class. Not checked are the attributes of vLLM's app
# state (`engine_client`, `openai_serving_chat`, `server`, `args`), which no class declares.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    # MetokServingChat copies all attributes of vLLM's handler and uses these.
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat": (
        "model_config",
        "engine_client",
        "online_renderer",
        "default_sampling_params",
        "models",
    ),
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels": ("base_model_paths",),
    "vllm.entrypoints.openai.models.protocol:BaseModelPath": ("name",),
    "vllm.entrypoints.serve.engine.protocol:ModelCard": ("id", "root", "parent", "max_model_len"),
    "vllm.entrypoints.serve.engine.protocol:ModelList": ("data",),
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionResponse": ("choices",),
    "vllm.renderers.online_renderer:OnlineRenderer": ("trust_request_mm_kwargs",),
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest": (
        "messages",
        "model",
        "cache_salt",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "use_beam_search",
        "prompt_logprobs",
        "echo",
        "top_logprobs",
    ),
    "vllm.entrypoints.openai.responses.protocol:ResponsesRequest": ("input",),
    "vllm.entrypoints.serve.engine.protocol:ErrorResponse": ("error",),
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "vllm_config",
        "model_config",
        "engine_core",
        "errored",
    ),
    "vllm.outputs:RequestOutput": ("finished", "outputs"),
    "vllm.outputs:CompletionOutput": ("finish_reason", "token_ids"),
    "vllm.sampling_params:SamplingParams": ("n",),
    "vllm.config.vllm:VllmConfig": (
        "additional_config",
        "cache_config",
        "model_config",
        "parallel_config",
        "scheduler_config",
        "shutdown_timeout",
    ),
    "vllm.config.cache:CacheConfig": ("block_size",),
    "vllm.config.scheduler:SchedulerConfig": ("max_num_seqs",),
    "vllm.config.parallel:ParallelConfig": ("data_parallel_size", "_api_process_count"),
    "vllm.config.model:ModelConfig": ("architecture", "hf_config", "hf_text_config"),
    _MEDIA.removesuffix("."): (
        "allowed_local_media_path",
        "allowed_media_domains",
        "media_io_kwargs",
        "_media_cache_dir",
    ),
    "vllm.multimodal.media.base:MediaWithBytes": ("media", "original_bytes"),
    "vllm.multimodal.media.image:ImageMediaIO": ("image_mode", "rgba_background_color"),
    "vllm.multimodal.media.video:VideoMediaIO": (
        "image_io",
        "kwargs",
        "num_frames",
        "video_loader",
    ),
}
