"""METokConfig: one frozen, validated object that says what METok does.

Filled in rising order from preset, YAML file, environment (`METOK_*`), flags and request.
Field names are a promise to users; the rule they parameterise is the paper's (arXiv 2506.02850).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from metok_vllm.errors import ConfigError

ENV_PREFIX = "METOK_"
ALIGNMENT_MODES = ("shared", "separate", "none")

# Stages 2 and 3 join these presets when the engine can run them.
PRESETS: dict[str, dict[str, Any]] = {
    "quality": {"num_events": 8, "key_event_ratio": 0.75, "key_frames_per_event": 8},
    "balanced": {},
    "max": {"key_event_ratio": 0.4, "key_frames_per_event": 2},
    "off": {"enabled": False},
}

# Block tables are laid out once, so whatever moves a layer boundary belongs to the server.
REQUEST_FIELDS = frozenset(
    {
        "enabled",
        "preset",
        "num_events",
        "key_event_ratio",
        "key_frames_per_event",
        "strides",
        "decode_keep",
    }
)


@dataclass(frozen=True)
class METokConfig:
    """Settings of METok, checked at construction. Raises ConfigError with the offending value.

    `key_frames_per_event` is a count (int) or a share of the event's frames (float in (0, 1]).
    `strides` are the pooling strides of the three frame classes, finest first (paper, section 3.1).
    """

    enabled: bool = True
    preset: str = "balanced"
    stages: tuple[int, ...] = (1,)
    num_events: int = 5
    key_event_ratio: float = 0.6
    key_frames_per_event: int | float = 6
    strides: tuple[int, int, int] = (2, 4, 8)
    pruning_layers: tuple[int, int, int] | None = None
    keep_ratio: float = 0.76
    decode_keep: float = 0.0
    alignment_model: str | None = None
    alignment_mode: str = "separate"
    feature_cache_bytes: int = 0
    encoder_chunk_frames: int = 32

    def __post_init__(self) -> None:
        for name in ("stages", "strides", "pruning_layers"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        _check_types(self)
        _check_values(self)

    def updated(self, values: Mapping[str, Any]) -> METokConfig:
        """A copy with `values` on top. A preset among them comes first, explicit fields win."""
        _check_known(values)
        merged = dict(values)
        preset = merged.get("preset")
        if preset is not None:
            merged = {**_preset(preset), **merged}
        return _replace(self, merged)

    def for_request(self, values: Mapping[str, Any]) -> METokConfig:
        """The configuration of one request. Raises ConfigError for what a request may not change.

        A request that names a preset gets that preset's values for everything it may set.
        """
        _check_known(values)
        for name in values:
            if name not in REQUEST_FIELDS:
                raise ConfigError(
                    f"metok.{name} cannot be set per request: it is fixed when the server "
                    f"starts; a request may set {', '.join(sorted(REQUEST_FIELDS))}",
                    name,
                )
        if values.get("decode_keep") and 3 not in self.stages:
            raise ConfigError(
                f"metok.decode_keep {values['decode_keep']!r} needs stage 3, which this server "
                f"does not run (stages {list(self.stages)})",
                "decode_keep",
            )
        base = self
        preset = values.get("preset")
        if preset is not None:
            defaults = METokConfig()
            reset = {name: getattr(defaults, name) for name in REQUEST_FIELDS}
            base = _replace(self, {**reset, **_preset(preset), "preset": preset})
        return _replace(base, dict(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, as carried in vLLM's `additional_config["metok"]`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> METokConfig:
        """From a mapping as users write it. Unknown keys are a ConfigError."""
        return cls().updated(values)

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        config_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> METokConfig:
        """Merge file, environment and flags, in rising order, over the preset that wins."""
        layers = [
            _read_yaml(config_file) if config_file else {},
            _read_environ(os.environ if environ is None else environ),
            {k: v for k, v in (flags or {}).items() if v is not None},
        ]
        merged: dict[str, Any] = {}
        for layer in layers:
            _check_known(layer)
            merged.update(layer)
        return cls.from_dict(merged)


def _preset(name: object) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"metok.preset must be one of {', '.join(PRESETS)}; got {name!r}", "preset"
        )
    return PRESETS[name]


def _replace(config: METokConfig, values: Mapping[str, Any]) -> METokConfig:
    fields_given: dict[str, Any] = dict(values)
    return replace(config, **fields_given)


def _check_known(values: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(METokConfig)]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"metok.{name} is not a known field; known: {', '.join(known)}", str(name)
            )


def _check_types(config: Any) -> None:
    def fail(name: str, wanted: str) -> None:
        raise ConfigError(f"metok.{name} must be {wanted}, got {getattr(config, name)!r}", name)

    def is_int(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    if not isinstance(config.enabled, bool):
        fail("enabled", "true or false")
    for name in ("num_events", "feature_cache_bytes", "encoder_chunk_frames"):
        if not is_int(getattr(config, name)):
            fail(name, "an integer")
    for name in ("key_event_ratio", "keep_ratio", "decode_keep", "key_frames_per_event"):
        if not is_int(getattr(config, name)) and not isinstance(getattr(config, name), float):
            fail(name, "a number")
    for name in ("stages", "strides"):
        value = getattr(config, name)
        if not isinstance(value, tuple) or not all(is_int(v) for v in value):
            fail(name, "a list of integers")
    layers = config.pruning_layers
    if layers is not None and (not isinstance(layers, tuple) or not all(map(is_int, layers))):
        fail("pruning_layers", "a list of three layer numbers")
    if config.alignment_model is not None and not isinstance(config.alignment_model, str):
        fail("alignment_model", "a path or a model name")


def _check_values(config: METokConfig) -> None:
    def require(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ConfigError(f"metok.{name} must be {wanted}, got {getattr(config, name)!r}", name)

    _preset(config.preset)
    require(set(config.stages) <= {1, 2, 3}, "stages", "a subset of [1, 2, 3]")
    require(1 <= config.num_events <= 1024, "num_events", "between 1 and 1024")
    require(0 < config.key_event_ratio <= 1, "key_event_ratio", "in (0, 1]")
    frames = config.key_frames_per_event
    ok = frames >= 1 if isinstance(frames, int) else 0 < frames <= 1
    require(ok, "key_frames_per_event", "a count of at least 1 or a share in (0, 1]")
    fine_to_coarse = len(config.strides) == 3 and list(config.strides) == sorted(config.strides)
    require(
        fine_to_coarse and config.strides[0] >= 1 and config.strides[-1] <= 64,
        "strides",
        "three strides from 1 to 64, finest first",
    )
    if config.pruning_layers is not None:
        p = config.pruning_layers
        require(
            len(p) == 3 and 0 < p[0] < p[1] < p[2], "pruning_layers", "three rising layer numbers"
        )
    require(0 < config.keep_ratio <= 1, "keep_ratio", "in (0, 1]")
    require(0 <= config.decode_keep <= 1, "decode_keep", "in [0, 1]")
    require(
        config.alignment_mode in ALIGNMENT_MODES,
        "alignment_mode",
        f"one of {', '.join(ALIGNMENT_MODES)}",
    )
    require(config.feature_cache_bytes >= 0, "feature_cache_bytes", "0 or more")
    require(config.encoder_chunk_frames >= 1, "encoder_chunk_frames", "at least 1")


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the METok configuration file: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("the METok configuration file must hold a mapping of field: value")
    return content


def _read_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in fields(METokConfig):
        raw = environ.get(ENV_PREFIX + field.name.upper())
        if raw is None or raw == "":
            continue
        try:
            values[field.name] = json.loads(raw)
        except json.JSONDecodeError:
            values[field.name] = raw
    return values
