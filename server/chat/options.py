"""What a chat request may set: its METok settings, and vLLM's multimodal options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from vllm.entrypoints.generate.base.protocol import validate_request_mm_kwargs
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import FASTV
from metok_vllm.errors import ConfigError
from metok_vllm.plan.prompt import EVICT, PRUNE

OPTION = "metok"
# What a client may say about reading a video even if multimodal options are not trusted: the
# media limits bound both.
OPEN_VIDEO_OPTIONS = frozenset({"num_frames", "fps"})


def request_config(
    request: ChatCompletionRequest, config: METokConfig | None
) -> METokConfig | None:
    """Settings of the request on top of the server's `config`, None without METok.

    Raises ConfigError.
    """
    overrides = getattr(request, OPTION, None)
    if overrides is not None and not isinstance(overrides, dict):
        raise ConfigError("metok must be an object of settings", OPTION)
    if config is None:
        if overrides is None:
            return None
        raise ConfigError(
            "This model is served without METok; start the server with 'metok serve' and a "
            "model METok supports to use the metok field",
            OPTION,
        )
    try:
        return config.for_request(overrides or {})
    except ConfigError as error:
        raise ConfigError(str(error), f"{OPTION}.{error.field}") from error


def without_pruning(config: METokConfig) -> METokConfig:
    """The configuration with stages 2 and 3 off; `config` itself where neither runs.

    Beam search sends every beam's tokens as a new prompt, which must not be ranked as a question.
    Raises ConfigError where another method prunes.
    """
    if config.enabled and config.rule == FASTV:
        raise ConfigError(f"rule {FASTV} cannot be combined with beam search", f"{OPTION}.rule")
    if not {PRUNE, EVICT} & set(config.running_stages):
        return config
    return replace(config, stages=tuple(s for s in config.stages if s not in (PRUNE, EVICT)))


def check_client_options(request: ChatCompletionRequest, trust: bool) -> None:
    """Raises ConfigError or vLLM's own error for multimodal options a client may not set."""
    options = request.mm_processor_kwargs
    if any(key.startswith(OPTION) for key in _keys(options)):
        raise ConfigError(
            "METok's settings belong in the metok field, not in mm_processor_kwargs",
            "mm_processor_kwargs",
        )
    media = request.media_io_kwargs or {}
    is_open = set(media) <= {"video"} and set(media.get("video") or {}) <= OPEN_VIDEO_OPTIONS
    validate_request_mm_kwargs(
        mm_processor_kwargs=options,
        media_io_kwargs=None if is_open else media,
        trust_request_mm_kwargs=trust,
    )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
