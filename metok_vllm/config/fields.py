"""METokConfig: all settings of METok in one frozen, validated object.

Filled in rising order of priority from preset, YAML file, environment (`METOK_*`), flags, request.
Field names are public and stay. The method they configure is the paper's (arXiv 2506.02850).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metok_vllm.config.checks import check_types, check_values, shown
from metok_vllm.config.environment import setting
from metok_vllm.config.families import KEY_FRAME_SHARES, STATEFUL
from metok_vllm.config.methods import ENCODER_RULES, METOK, POOL, TURN
from metok_vllm.config.presets import OFF, check_presets, preset_values, with_shares
from metok_vllm.config.request_fields import REQUEST_FIELDS, STAGE_OF_FIELD
from metok_vllm.config.sources import check_known, given_values
from metok_vllm.errors import ConfigError


@dataclass(frozen=True)
class METokConfig:
    """Settings of METok, checked at construction. Raises ConfigError with the offending value.

    `key_frames_per_event` is a count (int) or a share of the event's frames (float in (0, 1]).
    `strides` are the pooling strides of the three frame classes, finest first (section 3.1). A
    model family may not have every `reduce` (`VideoLayout.reductions`).
    """

    enabled: bool = setting(True, "whether METok runs for requests that do not set it")
    preset: str = setting("balanced", "quality, balanced, max or off; other fields override it")
    presets: Mapping[str, Any] | None = setting(
        None, "values of quality, balanced and max for this model, from calibration"
    )
    stages: tuple[int, ...] = setting((1, 2, 3), "which stages run")
    num_events: int = setting(5, "events a video is cut into")
    key_event_ratio: float = setting(0.6, "share of the events that are key events")
    key_frames_per_event: int | float = setting(
        6, "key frames in an event: a count, or a share of its frames"
    )
    strides: tuple[int, int, int] = setting(
        (2, 4, 8), "pooling strides of the three frame classes, finest first"
    )
    reduce: str = setting(
        POOL, "how a frame gets coarser: pool, select (tokens on the grid) or resize"
    )
    pruning_layers: tuple[int, int, int] | None = setting(
        None, "layers at which stage 2 drops visual tokens"
    )
    keep_ratio: float = setting(0.76, "share of the visual tokens that stage 2 keeps")
    decode_keep: float = setting(0.0, "share of the visual tokens that stage 3 keeps for decoding")
    evict_after: int = setting(0, "new tokens that are decoded before stage 3 frees any KV")
    focus: str = setting(
        TURN, "the question that selects: turn (the last), conversation (the first) or video (none)"
    )
    focus_text: str | None = setting(None, "a text that selects in place of any question")
    rule: str = setting(METOK, "metok, or a baseline: random, evs, vidcom2, vcast or fastv")
    rule_keep: float = setting(0.25, "share of the dense visual tokens that a baseline keeps")
    alignment_model: str | None = setting(
        None, "SigLIP or CLIP (path or hub name) that ranks frames by the question"
    )
    alignment_mode: str = setting(
        "separate", "separate, shared (the head on the video model's own features) or none"
    )
    feature_cache_bytes: int = setting(
        0, "bytes of vision features kept for the next question about a video"
    )
    prefill_buffer_tokens: int | None = setting(
        None, "prompt tokens whose rows wait for the last chunk (default: twice --max-model-len)"
    )
    encoder_chunk_frames: int = setting(32, "frames that go through the vision tower at once")

    def __post_init__(self) -> None:
        for name in ("stages", "strides", "pruning_layers"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        check_types(self)
        preset_values(self.preset, None)
        check_presets(self.presets, REQUEST_FIELDS - {"enabled", "preset"})
        check_values(self)
        for name, values in (self.presets or {}).items():
            try:  # fail at start, not at the first request
                _replace(self, {"presets": None})._on_preset(name, values)
            except ConfigError as error:
                message = f"metok.presets.{name} cannot be used: {error}"
                raise ConfigError(message, "presets") from error

    @property
    def running_stages(self) -> tuple[int, ...]:
        """METok's stages that run: none where it is off or a baseline is chosen."""
        return self.stages if self.enabled and self.rule == METOK else ()

    @property
    def compresses(self) -> bool:
        """Whether a video's tokens differ from the model's own dense input."""
        return self.enabled and (self.rule != METOK or bool(self.stages))

    @property
    def encoder_rule(self) -> bool:
        """Whether a baseline selects a video's tokens in the encoder, in place of stage 1."""
        return self.enabled and self.rule in ENCODER_RULES

    def updated(self, values: Mapping[str, Any]) -> METokConfig:
        """A copy with `values`. A preset among them is applied first, so explicit fields win."""
        check_known(METokConfig, values)
        merged = dict(values)
        own = merged.get("presets", self.presets)
        # New `presets` also apply to the preset that is chosen already.
        preset = merged.get("preset", self.preset if merged.get("presets") else None)
        if preset is not None:
            check_presets(own, REQUEST_FIELDS - {"enabled", "preset"})
            merged = {**preset_values(preset, own), **merged}
        return _replace(self, merged)

    def restored(self, values: Mapping[str, Any]) -> METokConfig:
        """A copy with values of a configuration that was checked where it was parsed."""
        copied = copy(self)
        for name, value in values.items():
            object.__setattr__(copied, name, tuple(value) if isinstance(value, list) else value)
        return copied

    def for_request(self, values: Mapping[str, Any]) -> METokConfig:
        """The configuration of one request. Raises ConfigError for what a request may not change.

        A request that names a preset gets that preset's values for everything it may set.
        """
        check_known(METokConfig, values)
        for name in values:
            if name not in REQUEST_FIELDS:
                raise ConfigError(
                    f"metok.{name} cannot be set per request: it is fixed when the server "
                    f"starts; a request may set {', '.join(sorted(REQUEST_FIELDS))}",
                    name,
                )
        base = self
        preset = values.get("preset")
        if preset == OFF and values.get("enabled"):
            raise ConfigError("metok.preset 'off' contradicts metok.enabled true", "preset")
        if preset is not None:
            base = self._on_preset(preset, preset_values(preset, self.presets))
        config = _replace(base, dict(values))
        if config.enabled and config.preset == OFF:
            # Enabled where the server's preset is off: use the default preset.
            config = replace(config, preset=METokConfig().preset)
        self._check_runnable(config, values)
        for name, stage in STAGE_OF_FIELD.items():
            if name in values and stage not in config.stages:
                raise ConfigError(
                    f"metok.{name} needs stage {stage}, which is not among the stages "
                    f"{list(config.stages)}",
                    name,
                )
        return config

    def _on_preset(self, name: str, values: Mapping[str, Any]) -> METokConfig:
        """The configuration of a request that names a preset with these values."""
        defaults = METokConfig()
        reset = {field: getattr(defaults, field) for field in REQUEST_FIELDS - {"stages"}}
        config = _replace(self, {**reset, **values, "preset": name})
        self._check_runnable(config, values)
        return config

    def _check_runnable(self, config: METokConfig, values: Mapping[str, Any]) -> None:
        """Raise ConfigError where `values` lead to a `config` that this server cannot run."""
        if not set(config.stages) <= set(self.stages):
            raise ConfigError(
                f"metok.stages {shown(list(config.stages))} cannot be set: this server runs "
                f"stages {list(self.stages)}",
                "stages",
            )
        if "rule_keep" in values and config.rule == METOK:
            raise ConfigError(
                f"metok.rule_keep {shown(config.rule_keep)} needs another rule than 'metok', which "
                "has keep_ratio and decode_keep",
                "rule_keep",
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, as in vLLM's `additional_config["metok"]`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> METokConfig:
        """From a mapping as users write it. Unknown keys are a ConfigError."""
        return cls().updated(values)

    @classmethod
    def given(
        cls,
        flags: Mapping[str, Any] | None = None,
        config_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """The values that file, environment and flags set, checked and JSON-ready.

        What they leave open is decided where the model family is known, by `load`.
        """
        values = given_values(cls, flags, config_file, environ)
        cls.from_dict(values)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any] | None = None,
        config_file: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
        family: str | None = None,
    ) -> METokConfig:
        """Merge file, environment and flags, in rising priority, over the preset they choose.

        `family` is the `model_type` of the model, which may have presets and stages of its own.
        Flags may name the file themselves, under CONFIG_FILE.
        """
        values = given_values(cls, flags, config_file, environ)
        if family not in KEY_FRAME_SHARES:
            return cls.from_dict(values)
        own = values.get("presets")
        check_presets(own, REQUEST_FIELDS - {"enabled", "preset"})
        shares = KEY_FRAME_SHARES[family]
        # The default preset's share is a request's where the server's preset is off.
        stages = (1,) if family in STATEFUL else cls().stages
        base = cls(key_frames_per_event=shares[cls().preset], stages=stages)
        return base.updated({**values, "presets": with_shares(own, shares)})


def _replace(config: METokConfig, values: Mapping[str, Any]) -> METokConfig:
    fields_given: dict[str, Any] = dict(values)
    return replace(config, **fields_given)
