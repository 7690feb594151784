"""Checks of the fields of a METokConfig. Errors name the field, the rule and the value."""

from __future__ import annotations

from typing import Any

from metok_vllm.config.methods import FASTV, FOCUSES, REDUCTIONS, RULES
from metok_vllm.errors import ConfigError

ALIGNMENT_MODES = ("shared", "separate", "none")
# Bound on events, key frames of an event and frames of a chunk: above any video, below overflow.
MOST = 1024
MOST_TOKENS = 1 << 20  # of an answer


def shown(value: object) -> str:
    """A value in a message, truncated because a client may send any length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_types(config: Any) -> None:
    """Raise ConfigError for the first field of a METokConfig that has the wrong type."""
    _require(isinstance(config.enabled, bool), config, "enabled", "true or false")
    for name in ("num_events", "feature_cache_bytes", "encoder_chunk_frames", "evict_after"):
        _require(_is_int(getattr(config, name)), config, name, "an integer")
    shares = ("key_event_ratio", "keep_ratio", "decode_keep", "rule_keep", "key_frames_per_event")
    for name in shares:
        value = getattr(config, name)
        _require(_is_int(value) or isinstance(value, float), config, name, "a number")
    for name in ("stages", "strides"):
        _require(_are_ints(getattr(config, name)), config, name, "a list of integers")
    layers = config.pruning_layers
    wanted = "a list of three layer numbers"
    _require(layers is None or _are_ints(layers), config, "pruning_layers", wanted)
    for name, known in (("rule", RULES), ("reduce", REDUCTIONS), ("focus", FOCUSES)):
        wanted = f"one of {', '.join(known)}"
        _require(isinstance(getattr(config, name), str), config, name, wanted)
    text = config.focus_text
    _require(text is None or isinstance(text, str), config, "focus_text", "a text")
    model = config.alignment_model
    wanted = "a path or a model name"
    _require(model is None or isinstance(model, str), config, "alignment_model", wanted)


def check_values(config: Any) -> None:
    """Raise ConfigError for the first field whose value is out of range."""
    _require(set(config.stages) <= {1, 2, 3}, config, "stages", "a subset of [1, 2, 3]")
    _require(1 <= config.num_events <= MOST, config, "num_events", f"between 1 and {MOST}")
    _require(0 < config.key_event_ratio <= 1, config, "key_event_ratio", "in (0, 1]")
    frames = config.key_frames_per_event
    ok = 1 <= frames <= MOST if isinstance(frames, int) else 0 < frames <= 1
    wanted = f"a count from 1 to {MOST} or a share in (0, 1]"
    _require(ok, config, "key_frames_per_event", wanted)
    strides = config.strides
    rising = len(strides) == 3 and list(strides) == sorted(strides)
    # Dense is stride 2: a finer stride could exceed the memory that vLLM profiled.
    ok = rising and strides[0] >= 2 and strides[-1] <= 64
    _require(ok, config, "strides", "three strides from 2 to 64, finest first")
    _require(config.reduce in REDUCTIONS, config, "reduce", f"one of {', '.join(REDUCTIONS)}")
    layers = config.pruning_layers
    ok = layers is None or (len(layers) == 3 and 0 < layers[0] < layers[1] < layers[2])
    _require(ok, config, "pruning_layers", "three rising layer numbers")
    _require(0 < config.keep_ratio <= 1, config, "keep_ratio", "in (0, 1]")
    _require(0 <= config.decode_keep <= 1, config, "decode_keep", "in [0, 1]")
    tokens = config.evict_after
    _require(0 <= tokens <= MOST_TOKENS, config, "evict_after", f"from 0 to {MOST_TOKENS}")
    _require(config.focus in FOCUSES, config, "focus", f"one of {', '.join(FOCUSES)}")
    text = config.focus_text
    ok = text is None or (bool(text.strip()) and len(text) <= MOST)
    _require(ok, config, "focus_text", f"a text of at most {MOST} characters")
    _require(config.rule in RULES, config, "rule", f"one of {', '.join(RULES)}")
    if config.rule == FASTV and 2 not in config.stages:
        raise ConfigError(
            f"metok.rule 'fastv' needs stage 2, which is not among the stages "
            f"{list(config.stages)}",
            "rule",
        )
    _require(0 < config.rule_keep <= 1, config, "rule_keep", "in (0, 1]")
    modes = f"one of {', '.join(ALIGNMENT_MODES)}"
    _require(config.alignment_mode in ALIGNMENT_MODES, config, "alignment_mode", modes)
    _require(config.feature_cache_bytes >= 0, config, "feature_cache_bytes", "0 or more")
    chunk = config.encoder_chunk_frames
    _require(1 <= chunk <= MOST, config, "encoder_chunk_frames", f"between 1 and {MOST}")


def _require(ok: bool, config: Any, name: str, wanted: str) -> None:
    if not ok:
        value = shown(getattr(config, name))
        raise ConfigError(f"metok.{name} must be {wanted}, got {value}", name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ints(value: object) -> bool:
    return isinstance(value, tuple) and all(map(_is_int, value))
