"""Checkpoints through Hugging Face's loaders: without output, and with clear errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from metok_vllm.errors import ConfigError


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and no warnings. Raises ConfigError for what cannot be loaded."""
    from transformers.utils import logging

    from metok_vllm.models.llava_qwen_config import register_config

    register_config()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the model cannot be loaded: {reason}", "model") from error


def model_family(model: str) -> str | None:
    """The `model_type` of a path or hub name; None where it cannot be read."""
    from transformers import PretrainedConfig

    try:
        content, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError):
        return None
    family = content.get("model_type")
    return family if isinstance(family, str) else None


def require_all_weights(info: Mapping[str, Any]) -> None:
    """Raise ConfigError where `from_pretrained`'s loading info lists missing weights.

    Transformers would initialise them with random numbers.
    """
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ConfigError(f"the checkpoint lacks weights of the model: {names}", "model")
