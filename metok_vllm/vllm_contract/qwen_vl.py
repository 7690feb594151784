"""What the Qwen model files rely on in vLLM; see `families.py`."""

from __future__ import annotations

_FILE = "vllm.model_executor.models.{}:"
_QWEN2_5 = _FILE.format("qwen2_5_vl")
_QWEN3 = _FILE.format("qwen3_vl")
_QWEN3_5 = _FILE.format("qwen3_5")

_FORWARD = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds", "kwargs")
_LAYER = ("positions", "hidden_states", "residual")


def _methods(file: str, name: str) -> dict[str, tuple[str, ...]]:
    """Methods that both families have; `name` is the model's in vLLM."""
    model = f"{file}{name}ForConditionalGeneration"
    processor = f"{file}{name}MultiModalProcessor"
    return {
        f"{processor}._apply_hf_processor_main": ("mm_items", "hf_kwargs"),
        f"{processor}._get_mm_hashes": ("inputs",),
        f"{processor}._get_cache_missing_processor_kwargs": ("inputs", "mm_is_cached"),
        f"{processor}._get_mm_fields_config": ("hf_inputs", "hf_processor_mm_kwargs"),
        f"{processor}._get_prompt_updates": (
            *("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
        ),
        f"{file}{name}ProcessingInfo.get_hf_config": (),
        f"{model}.embed_multimodal": ("kwargs",),
        f"{model}.embed_input_ids": ("input_ids", "multimodal_embeddings", "is_multimodal"),
        f"{model}.get_mrope_input_positions": ("input_tokens", "mm_features"),
        f"{model}.get_encoder_cudagraph_config": (),
        f"{model}._process_video_input": ("video_input",),
        f"{model}.load_weights": ("weights",),
        f"{model}.forward": _FORWARD,
        "vllm.model_executor.models.utils:_merge_multimodal_embeddings": (
            *("inputs_embeds", "multimodal_embeddings", "is_multimodal"),
        ),
        "vllm.model_executor.layers.rotary_embedding:MRotaryEmbedding._compute_cos_sin_cache": (),
    }


_ROTARY = {
    "vllm.model_executor.layers.rotary_embedding:MRotaryEmbedding": (
        *("max_position_embeddings", "cos_sin_cache"),
    ),
}

QWEN2_5_VL_METHODS = {
    **_methods(_QWEN2_5, "Qwen2_5_VL"),
    _FILE.format("qwen2") + "Qwen2DecoderLayer.forward": _LAYER,
}
QWEN2_5_VL_ATTRIBUTES = {
    _QWEN2_5 + "Qwen2_5_VLForConditionalGeneration": ("config", "language_model", "visual"),
    _QWEN2_5 + "Qwen2_5_VisionTransformer": ("out_hidden_size", "patch_embed"),
    **_ROTARY,
}

_VIDEO_TEXT = _QWEN3 + "Qwen3VLMultiModalProcessor.get_video_repl"
QWEN3_VL_METHODS = {
    **_methods(_QWEN3, "Qwen3VL"),
    _VIDEO_TEXT: (
        *("tokens_per_frame", "timestamps", "tokenizer", "vision_start_token_id"),
        *("vision_end_token_id", "video_token_id", "select_token_id"),
    ),
    _QWEN3 + "Qwen3VLForConditionalGeneration._get_deepstack_input_embeds": ("num_tokens",),
    _QWEN3 + "Qwen3VLForConditionalGeneration._clear_deepstack_input_embeds": ("num_tokens",),
    _FILE.format("qwen3") + "Qwen3DecoderLayer.forward": _LAYER,
}
QWEN3_VL_ATTRIBUTES = {
    _QWEN3 + "Qwen3VLForConditionalGeneration": (
        *("config", "language_model", "visual", "deepstack_num_level"),
    ),
    _QWEN3 + "Qwen3_VisionTransformer": ("out_hidden_size", "patch_embed"),
    **_ROTARY,
}

QWEN3_VL_MOE_METHODS = {
    **QWEN3_VL_METHODS,
    _FILE.format("qwen3_vl_moe") + "Qwen3VLMoeProcessingInfo.get_hf_config": (),
    _FILE.format("qwen3_moe") + "Qwen3MoeDecoderLayer.forward": _LAYER,
}
QWEN3_VL_MOE_ATTRIBUTES = {
    **QWEN3_VL_ATTRIBUTES,
    _FILE.format("qwen3_vl_moe") + "Qwen3VLMoeForConditionalGeneration": (
        *("config", "language_model", "visual"),
    ),
}

# Qwen3.5 has Qwen3-VL's processor, tower and positions, and a forward pass of its own.
QWEN3_5_METHODS = {
    **_methods(_QWEN3, "Qwen3VL"),
    _VIDEO_TEXT: QWEN3_VL_METHODS[_VIDEO_TEXT],
    _QWEN3_5 + "Qwen3_5ProcessingInfo.get_hf_config": (),
    _QWEN3_5 + "Qwen3_5MoeProcessingInfo.get_hf_config": (),
    _QWEN3_5 + "Qwen3_5ForConditionalGeneration.embed_input_ids": (
        *("input_ids", "multimodal_embeddings", "is_multimodal"),
    ),
    _QWEN3_5 + "Qwen3_5ForConditionalGeneration.forward": _FORWARD,
}
QWEN3_5_ATTRIBUTES = {
    _QWEN3_5 + "Qwen3_5ForConditionalGeneration": ("config", "language_model", "visual"),
    _QWEN3_5 + "Qwen3_5MoeForConditionalGeneration": ("config", "language_model", "visual"),
    _QWEN3 + "Qwen3_VisionTransformer": ("out_hidden_size", "patch_embed"),
    **_ROTARY,
}
