"""Presets: named sets of values. The defaults are the paper's, for models of about 28 layers.

A server may override them per name, for example with the result of `metok calibrate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metok_vllm.config.checks import shown
from metok_vllm.errors import ConfigError

OFF = "off"
PRESETS: dict[str, dict[str, Any]] = {
    "quality": {
        "num_events": 8,
        "key_event_ratio": 0.75,
        "key_frames_per_event": 8,
        "keep_ratio": 0.9,
        "decode_keep": 0.25,
    },
    "balanced": {},
    "max": {"key_event_ratio": 0.4, "key_frames_per_event": 2, "keep_ratio": 0.5},
    OFF: {"enabled": False},
}


def preset_values(name: object, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a preset; a server's `own` presets come first. Raises ConfigError."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(
            f"metok.preset must be one of {', '.join(PRESETS)}; got {shown(name)}", "preset"
        )
    return dict((own or {}).get(name, PRESETS[name]))


def with_shares(own: Mapping[str, Any] | None, shares: Mapping[str, float]) -> dict[str, Any]:
    """A server's `own` presets and, for names it has not, the paper's; key frames are a share of
    an event's frames unless the server's own say otherwise."""
    found = {}
    for name, share in shares.items():
        key_frames = {"key_frames_per_event": share}
        if own is not None and name in own:
            found[name] = {**key_frames, **own[name]}
        else:
            found[name] = {**PRESETS[name], **key_frames}
    return found


def check_presets(own: object, settable: frozenset[str]) -> None:
    """Raise ConfigError unless `own` maps names of presets to values of `settable` fields."""
    if own is None:
        return
    names = [name for name in PRESETS if name != OFF]
    if not isinstance(own, Mapping) or not all(isinstance(v, Mapping) for v in own.values()):
        raise ConfigError(
            f"metok.presets must map {', '.join(names)} to their values, got {shown(own)}",
            "presets",
        )
    for name, values in own.items():
        if name not in names:
            raise ConfigError(
                f"metok.presets may have {', '.join(names)}; got {shown(name)}", "presets"
            )
        for field in values:
            if field not in settable:
                raise ConfigError(
                    f"metok.presets.{name} may set {', '.join(sorted(settable))}; "
                    f"got {shown(field)}",
                    "presets",
                )
