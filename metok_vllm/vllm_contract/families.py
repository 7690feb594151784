"""What the model files rely on in vLLM, by the architecture that a checkpoint names.

Checked when a model of that architecture is configured, so that no unused model is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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

LLAVA_ONEVISION = FamilyContract(_ONEVISION_METHODS, _ONEVISION_ATTRIBUTES)

FAMILIES: dict[str, FamilyContract] = {
    "LlavaOnevisionForConditionalGeneration": LLAVA_ONEVISION,
}
