"""Turns METok on while vLLM builds its configuration, so that plain `vllm serve` works too.

vLLM runs a hook per architecture once the VllmConfig is complete
(vllm/model_executor/models/config.py, MODELS_CONFIG_MAP). The hook checks
`additional_config["metok"]`, replaces the architecture by ours and puts the resolved settings on
the Hugging Face config, which every process receives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from metok_vllm.alignment import load_config
from metok_vllm.config import METokConfig
from metok_vllm.engine.model_checks import check_model, check_stages
from metok_vllm.engine.staging import encode_only, is_staged, stage, use_v1_runner
from metok_vllm.errors import ConfigError
from metok_vllm.models import llava_qwen_config
from metok_vllm.vllm_contract import check_family

logger = init_logger("vllm.metok")

# vLLM's architecture -> ours, and the path of our class.
ARCHITECTURES = {
    "LlavaOnevisionForConditionalGeneration": (
        "MetokLlavaOnevisionForConditionalGeneration",
        "metok_vllm.models.llava_onevision:MetokLlavaOnevision",
    ),
    llava_qwen_config.ARCHITECTURE: (
        "MetokLlavaQwenForCausalLM",
        "metok_vllm.models.llava_qwen:MetokLlavaQwen",
    ),
    "Qwen2_5_VLForConditionalGeneration": (
        "MetokQwen2_5_VLForConditionalGeneration",
        "metok_vllm.models.qwen2_5_vl:MetokQwen25VL",
    ),
    "Qwen3VLForConditionalGeneration": (
        "MetokQwen3VLForConditionalGeneration",
        "metok_vllm.models.qwen3_vl:MetokQwen3VL",
    ),
    "Qwen3VLMoeForConditionalGeneration": (
        "MetokQwen3VLMoeForConditionalGeneration",
        "metok_vllm.models.qwen3_vl:MetokQwen3VLMoe",
    ),
    "Qwen3_5ForConditionalGeneration": (
        "MetokQwen3_5ForConditionalGeneration",
        "metok_vllm.models.qwen3_5:MetokQwen35",
    ),
    "Qwen3_5MoeForConditionalGeneration": (
        "MetokQwen3_5MoeForConditionalGeneration",
        "metok_vllm.models.qwen3_5:MetokQwen35Moe",
    ),
}
WORKER_EXTENSION = "metok_vllm.engine.worker.MetokWorkerExtension"


def register(problems: Sequence[str] = ()) -> None:
    """Register our architectures, and the hook before vLLM's own where it has one.

    `problems` are the reasons why this vLLM does not fit: METok then raises a RuntimeError.
    """
    if not problems:
        llava_qwen_config.register()
    for stock, (ours, path) in ARCHITECTURES.items():
        if not problems:
            ModelRegistry.register_model(ours, path)
        base = MODELS_CONFIG_MAP.get(stock, VerifyAndUpdateConfig)
        MODELS_CONFIG_MAP[stock] = _hook(stock, base, tuple(problems))


def _hook(architecture: str, base: type[Any], problems: tuple[str, ...]) -> type[Any]:
    class MetokHook(base):
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base.verify_and_update_config(vllm_config)
            if architecture == llava_qwen_config.ARCHITECTURE and not problems:
                llava_qwen_config.prepare(vllm_config.model_config)
            if _wanted(vllm_config) is not None:
                # The tables of other families are not read: their models would be imported.
                found = problems or tuple(check_family(architecture))
                if found:
                    raise RuntimeError("METok cannot run with this vLLM:\n  " + "\n  ".join(found))
            enable(vllm_config)

    return MetokHook


def _wanted(vllm_config: Any) -> Any:
    extra = vllm_config.additional_config
    return extra.get("metok") if isinstance(extra, dict) else None


def enable(vllm_config: Any) -> None:
    """Apply `additional_config["metok"]` to a VllmConfig; nothing if it is not set.

    Raises ConfigError for settings that are malformed or that this engine cannot honour.
    """
    values = _wanted(vllm_config)
    if values is None:
        return
    if not isinstance(values, dict):
        raise ConfigError(f"additional_config['metok'] must be an object, got {values!r}")
    family = vllm_config.model_config.hf_config.model_type
    config = METokConfig.load(values, family=family)
    _check(config, vllm_config)
    check_stages(config, family, given="stages" in METokConfig.given(values))
    if is_staged(config):
        config = stage(config, vllm_config)
        use_v1_runner(vllm_config)
    else:
        encode_only(vllm_config)
    check_model(config, vllm_config)

    model_config = vllm_config.model_config
    ours = ARCHITECTURES[model_config.architecture][0]
    model_config.hf_config.metok = config.to_dict()
    model_config.hf_config.architectures = [ours]
    model_config.model_arch_config = dataclasses.replace(
        model_config.model_arch_config, architectures=[ours]
    )
    info, architecture = model_config.registry.inspect_model_cls([ours], model_config)
    model_config._model_info, model_config._architecture = info, architecture
    vllm_config.parallel_config.worker_extension_cls = WORKER_EXTENSION
    logger.info("METok is on: %s", config)
    if not ranks_by_question(config):
        logger.warning(
            "METok runs without alignment towers: the question does not decide which events are "
            "key events. Set --metok-alignment-model, or --metok-key-event-ratio 1 to keep all "
            "events alike."
        )


def ranks_by_question(config: METokConfig) -> bool:
    """Whether the question decides which events are key events; true as well where all are, or
    where events decide nothing.

    Without towers answers get much worse: docs/eventqa.md, "What single choices cost".
    """
    towers = config.alignment_model is not None and config.alignment_mode != "none"
    decides = bool({1, 2} & set(config.running_stages)) and config.key_event_ratio < 1
    return towers or not decides


def _check(config: METokConfig, vllm_config: Any) -> None:
    other = vllm_config.parallel_config.worker_extension_cls
    if other and other != WORKER_EXTENSION:
        raise ConfigError(f"--worker-extension-cls {other} cannot be combined with METok")
    if config.alignment_model is not None and config.alignment_mode != "none":
        load_config(config.alignment_model)
