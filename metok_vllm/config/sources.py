"""The values that a user gives: YAML file, environment and flags, merged in rising priority."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from metok_vllm.config.checks import shown
from metok_vllm.config.environment import PREFIX, read_environ
from metok_vllm.errors import ConfigError

# Names a YAML file of fields in `additional_config["metok"]`; it is no field itself.
CONFIG_FILE = "config_file"


def given_values(
    cls: type[Any],
    flags: Mapping[str, Any] | None,
    config_file: str | Path | None,
    environ: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The fields of dataclass `cls` that are given somewhere; flags of None are not.

    Flags may name the file themselves, under CONFIG_FILE. Raises ConfigError.
    """
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    named = given.pop(CONFIG_FILE, None)
    if not isinstance(named, str | Path | None):
        raise ConfigError(
            f"metok.{CONFIG_FILE} must be the path of a YAML file, got {shown(named)}",
            CONFIG_FILE,
        )
    config_file = config_file or named
    layers = [
        _read_yaml(config_file) if config_file else {},
        read_environ(cls, PREFIX, environ),
        given,
    ]
    merged: dict[str, Any] = {}
    for layer in layers:
        check_known(cls, layer)
        merged.update(layer)
    return merged


def check_known(cls: type[Any], values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a value that is no field of dataclass `cls`."""
    known = [f.name for f in fields(cls)]
    for name in values:
        if name not in known:
            name = shown(name).strip("'")
            raise ConfigError(f"metok.{name} is not a known field; known: {', '.join(known)}", name)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read the METok configuration file: {error}", CONFIG_FILE
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            "the METok configuration file must hold a mapping of field: value", CONFIG_FILE
        )
    return content
