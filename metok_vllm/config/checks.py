"""What the fields of a METokConfig may hold. A refusal names field, rule and value."""

from __future__ import annotations

from typing import Any

from metok_vllm.config.methods import FASTV, RULES
from metok_vllm.errors import ConfigError

ALIGNMENT_MODES = ("shared", "separate", "none")
MOST = (
    1024  # events, key frames in an event, frames in a chunk: beyond any video, far from overflow
)


def shown(value: object) -> str:
    """A value in a message: as written, cut where a client sent something endless."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def refusal(config: Any, name: str, wanted: str) -> ConfigError:
    """The error for a field that is not what it must be."""
    return ConfigError(f"metok.{name} must be {wanted}, got {shown(getattr(config, name))}", name)


def check_types(config: Any) -> None:
    """Raise ConfigError for the first field of a METokConfig that has the wrong type."""

    def fail(name: str, wanted: str) -> None:
        raise refusal(config, name, wanted)

    def is_int(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if not isinstance(config.enabled, bool):
        fail("enabled", "true or false")
    for name in ("num_events", "feature_cache_bytes", "encoder_chunk_frames"):
        if not is_int(getattr(config, name)):
            fail(name, "an integer")
    shares = ("key_event_ratio", "keep_ratio", "decode_keep", "rule_keep", "key_frames_per_event")
    for name in shares:
        if not is_int(getattr(config, name)) and not isinstance(getattr(config, name), float):
            fail(name, "a number")
    for name in ("stages", "strides"):
        value = getattr(config, name)
        if not isinstance(value, tuple) or not all(is_int(v) for v in value):
            fail(name, "a list of integers")
    layers = config.pruning_layers
    if layers is not None and (not isinstance(layers, tuple) or not all(map(is_int, layers))):
        fail("pruning_layers", "a list of three layer numbers")
    if not isinstance(config.rule, str):
        fail("rule", f"one of {', '.join(RULES)}")
    if config.alignment_model is not None and not isinstance(config.alignment_model, str):
        fail("alignment_model", "a path or a model name")


def check_values(config: Any) -> None:
    """Raise ConfigError for the first field whose value is out of range."""

    def require(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise refusal(config, name, wanted)

    require(set(config.stages) <= {1, 2, 3}, "stages", "a subset of [1, 2, 3]")
    require(1 <= config.num_events <= MOST, "num_events", f"between 1 and {MOST}")
    require(0 < config.key_event_ratio <= 1, "key_event_ratio", "in (0, 1]")
    frames = config.key_frames_per_event
    ok = 1 <= frames <= MOST if isinstance(frames, int) else 0 < frames <= 1
    require(ok, "key_frames_per_event", f"a count from 1 to {MOST} or a share in (0, 1]")
    fine_to_coarse = len(config.strides) == 3 and list(config.strides) == sorted(config.strides)
    require(
        # Dense is stride 2: a finer one could need more memory than vLLM was told of.
        fine_to_coarse and config.strides[0] >= 2 and config.strides[-1] <= 64,
        "strides",
        "three strides from 2 to 64, finest first",
    )
    if config.pruning_layers is not None:
        p = config.pruning_layers
        require(
            len(p) == 3 and 0 < p[0] < p[1] < p[2], "pruning_layers", "three rising layer numbers"
        )
    require(0 < config.keep_ratio <= 1, "keep_ratio", "in (0, 1]")
    require(0 <= config.decode_keep <= 1, "decode_keep", "in [0, 1]")
    require(config.rule in RULES, "rule", f"one of {', '.join(RULES)}")
    if config.rule == FASTV and 2 not in config.stages:
        raise ConfigError(
            f"metok.rule 'fastv' needs stage 2, which is not among the stages "
            f"{list(config.stages)}",
            "rule",
        )
    require(0 < config.rule_keep <= 1, "rule_keep", "in (0, 1]")
    require(
        config.alignment_mode in ALIGNMENT_MODES,
        "alignment_mode",
        f"one of {', '.join(ALIGNMENT_MODES)}",
    )
    require(config.feature_cache_bytes >= 0, "feature_cache_bytes", "0 or more")
    chunk = config.encoder_chunk_frames
    require(1 <= chunk <= MOST, "encoder_chunk_frames", f"between 1 and {MOST}")
