"""Qwen3.5 and Qwen3.6, dense and mixtures of experts, with METok's stage 1.

vLLM's own model classes, subclassed, with Qwen3-VL's processor. Most decoder layers hold a state in
place of keys and values (Gated DeltaNet), so there are no tokens that stages 2 and 3 could drop:
`metok_vllm.engine.model_checks` refuses both.
Source of what is overridden: vllm/model_executor/models/qwen3_5.py, version 0.32.
"""

from __future__ import annotations

from vllm.model_executor.models.qwen3_5 import (
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeProcessingInfo,
    Qwen3_5ProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import Qwen3VLDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from metok_vllm.models.processing import MetokInfoMixin
from metok_vllm.models.qwen3_vl import MetokQwen3VLProcessor
from metok_vllm.models.qwen_vl import MetokQwenVL


class MetokQwen35Info(MetokInfoMixin, Qwen3_5ProcessingInfo):
    """Qwen3.5's processing info with METok's settings."""


class MetokQwen35MoeInfo(MetokInfoMixin, Qwen3_5MoeProcessingInfo):
    """The same for the mixture of experts."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokQwen3VLProcessor,
    info=MetokQwen35Info,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class MetokQwen35(MetokQwenVL, Qwen3_5ForConditionalGeneration):
    """vLLM's Qwen3.5 with videos encoded by event."""


@MULTIMODAL_REGISTRY.register_processor(
    MetokQwen3VLProcessor,
    info=MetokQwen35MoeInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class MetokQwen35Moe(MetokQwenVL, Qwen3_5MoeForConditionalGeneration):
    """vLLM's mixture of experts of Qwen3.5, the same way."""
