"""METok's settings that a model family cannot honour, checked at start-up."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from metok_vllm.config import METokConfig
from metok_vllm.config.families import QWEN_VL, STATEFUL
from metok_vllm.engine.staging import is_staged
from metok_vllm.errors import ConfigError
from metok_vllm.plan.families import deepstack_levels, video_layout
from metok_vllm.plan.layout import VideoLayout

logger = init_logger("vllm.metok")

# Methods of speculative decoding that look tokens up in the prompt.
WITHOUT_DRAFT_MODEL = ("ngram", "ngram_gpu", "suffix")


def check_stages(config: METokConfig, family: str, given: bool) -> None:
    """Raise ConfigError for stages that drop tokens where the decoder's layers hold none.

    `given` says whether the user chose the stages; otherwise the family's default is told.
    """
    if family not in STATEFUL:
        return
    reason = (
        "stages 2 and 3 drop tokens between decoder layers, and the linear-attention layers of "
        f"{family} hold a state, not tokens"
    )
    if is_staged(config):
        raise ConfigError(
            f"metok.stages {list(config.stages)} cannot run on this model: {reason}. "
            "Run stage 1 alone (--metok-stages '[1]')",
            "stages",
        )
    if not given:
        logger.warning("METok runs stage 1 alone: %s", reason)


def check_model(config: METokConfig, vllm_config: Any) -> None:
    """Raise ConfigError for the first setting that this model cannot honour.

    `config.pruning_layers` are filled in where the decoder runs in stages.
    """
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is not None and multimodal.is_multimodal_pruning_enabled():
        raise ConfigError(
            f"--video-pruning-rate {multimodal.video_pruning_rate} cannot be combined with METok: "
            "both choose a video's tokens. A request may choose 'rule': 'evs' or 'vidcom2'"
        )
    model = vllm_config.model_config.hf_config
    check_hf_config(config, model)
    if model.model_type in QWEN_VL:
        _check_graphs(vllm_config.compilation_config.cudagraph_mode)
        _check_drafts(vllm_config.speculative_config)


def check_hf_config(config: METokConfig, model: Any) -> None:
    """Raise ConfigError for the first setting that a model of this Hugging Face configuration
    cannot honour."""
    _check_layout(config, video_layout(model))
    if model.model_type not in QWEN_VL:
        return
    if config.alignment_mode == "shared":
        raise ConfigError(
            "metok.alignment_mode 'shared' needs a vision tower whose head an alignment model has; "
            f"{model.model_type} has none: use 'separate'",
            "alignment_mode",
        )
    levels = deepstack_levels(model)
    if is_staged(config) and config.pruning_layers and config.pruning_layers[0] < levels:
        raise ConfigError(
            f"metok.pruning_layers must begin at layer {levels} or later: vision features join "
            f"this decoder's first {levels} layers; got {list(config.pruning_layers)}",
            "pruning_layers",
        )


def _check_layout(config: METokConfig, video: VideoLayout) -> None:
    """Strides and reductions of all presets, the user's among them."""
    for values in (config.to_dict(), *(config.presets or {}).values()):
        if "reduce" in values:
            video.check_reduction(values["reduce"])
        for stride in values.get("strides", ()):
            if stride % video.unit:
                raise ConfigError(
                    f"metok.strides must be multiples of {video.unit}, the patches a side that "
                    f"this model merges, got {stride}",
                    "strides",
                )


def _check_graphs(mode: Any) -> None:
    """A full graph of a mixed batch would replay positions without the videos' own."""
    from vllm.config import CUDAGraphMode

    if mode is not None and mode.mixed_mode() == CUDAGraphMode.FULL:
        raise ConfigError(
            "full CUDA graphs of mixed batches cannot be combined with METok on this model, whose "
            f"tokens take positions with them: use cudagraph_mode FULL_AND_PIECEWISE, got {mode}"
        )


def _check_drafts(speculative: Any) -> None:
    """A draft model would take the channels with positions for features."""
    if speculative is not None and speculative.method not in WITHOUT_DRAFT_MODEL:
        raise ConfigError(
            f"--speculative-config with method {speculative.method!r} cannot be combined with "
            "METok on this model: a draft model does not know the positions that videos bring. "
            f"Leave it out, or use {' or '.join(map(repr, WITHOUT_DRAFT_MODEL))}"
        )
