"""What the model files rely on in vLLM, by the architecture that a checkpoint names.

Checked when a model of that architecture is configured, so that no unused model is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metok_vllm.vllm_contract import qwen_vl


@dataclass(frozen=True)
class FamilyContract:
    """Parameters of methods and names of attributes, as in `methods.py` and `attributes.py`."""

    methods: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, tuple[str, ...]]


_FILE = "vllm.model_executor.models.llava_onevision:"
_MODEL = _FILE + "LlavaOnevisionForConditionalGeneration"
_INFO = _FILE + "LlavaOnevisionProcessingInfo."
_PROCESSOR = _FILE + "LlavaOnevisionMultiModalProcessor."

_ONEVISION_METHODS: dict[str, tuple[str, ...]] = {
    _PROCESSOR + "_apply_hf_processor_main": ("mm_items", "hf_kwargs"),
    _PROCESSOR + "_get_mm_fields_config": ("hf_inputs", "hf_processor_mm_kwargs"),
    _PROCESSOR + "_get_prompt_updates": ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    _INFO + "get_num_frames_with_most_features": ("seq_len", "mm_counts"),
    _MODEL + ".embed_multimodal": ("kwargs",),
    _MODEL + "._process_video_pixels": ("inputs",),
    _MODEL + ".load_weights": ("weights",),
    _MODEL + ".forward": (
        "input_ids",
        "positions",
        "intermediate_tensors",
        "inputs_embeds",
        "kwargs",
    ),
    "vllm.model_executor.models.qwen2:Qwen2DecoderLayer.forward": (
        "positions",
        "hidden_states",
        "residual",
    ),
}
_ONEVISION_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    _MODEL: (
        *("config", "language_model", "vision_tower", "multi_modal_projector", "image_newline"),
    ),
}

# The original LLaVA-NeXT layout adds these to vLLM's LLaVA-OneVision.
_QWEN_METHODS: dict[str, tuple[str, ...]] = {
    **_ONEVISION_METHODS,
    _INFO + "get_num_image_tokens": ("image_width", "image_height"),
    _INFO + "get_num_video_tokens": ("image_width", "image_height", "num_frames"),
    _INFO + "get_image_size_with_most_features": (),
    _INFO + "get_hf_processor": ("kwargs",),
    _INFO + "get_hf_config": (),
    _MODEL + "._merge_image_patch_embeddings": (
        *("image_size", "patch_embeddings", "image_newline", "vision_aspect_ratio", "strategy"),
    ),
    "vllm.tokenizers.registry:TokenizerRegistry.register": (
        *("tokenizer_mode", "module", "class_name"),
    ),
    "vllm.renderers.registry:RENDERER_REGISTRY.register": (
        *("renderer_mode", "module", "class_name"),
    ),
    "vllm.tokenizers.hf:get_cached_tokenizer": ("tokenizer",),
}
_QWEN_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **_ONEVISION_ATTRIBUTES,
    "vllm.config:ModelConfig": ("tokenizer_mode",),
}

LLAVA_ONEVISION = FamilyContract(_ONEVISION_METHODS, _ONEVISION_ATTRIBUTES)
LLAVA_QWEN = FamilyContract(_QWEN_METHODS, _QWEN_ATTRIBUTES)

FAMILIES: dict[str, FamilyContract] = {
    "LlavaOnevisionForConditionalGeneration": LLAVA_ONEVISION,
    "LlavaQwenForCausalLM": LLAVA_QWEN,
    "Qwen2_5_VLForConditionalGeneration": FamilyContract(
        qwen_vl.QWEN2_5_VL_METHODS, qwen_vl.QWEN2_5_VL_ATTRIBUTES
    ),
    "Qwen3VLForConditionalGeneration": FamilyContract(
        qwen_vl.QWEN3_VL_METHODS, qwen_vl.QWEN3_VL_ATTRIBUTES
    ),
    "Qwen3VLMoeForConditionalGeneration": FamilyContract(
        qwen_vl.QWEN3_VL_MOE_METHODS, qwen_vl.QWEN3_VL_MOE_ATTRIBUTES
    ),
    "Qwen3_5ForConditionalGeneration": FamilyContract(
        qwen_vl.QWEN3_5_METHODS, qwen_vl.QWEN3_5_ATTRIBUTES
    ),
    "Qwen3_5MoeForConditionalGeneration": FamilyContract(
        qwen_vl.QWEN3_5_METHODS, qwen_vl.QWEN3_5_ATTRIBUTES
    ),
}
