"""Settings as fields of frozen dataclasses: with a help text, readable from the environment."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from metok_vllm.errors import ConfigError

T = TypeVar("T")


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its default and the one line that `--help` shows.

    What has no default may be a mapping, which has no hash.
    """
    return dataclasses.field(default=default, hash=default is not None, metadata={"help": text})


def help_of(field: dataclasses.Field[Any]) -> str:
    """The help text of a field made with `setting`."""
    return str(field.metadata["help"])


def from_environ(cls: type[T], prefix: str, environ: Mapping[str, str] | None = None) -> T:
    """A dataclass from `<prefix><FIELD>` variables; unset or empty ones keep their defaults.

    Raises ConfigError for a value that has not the type of the field's default.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = prefix + field.name.upper()
        raw = environ.get(name, "")
        if raw == "":
            continue
        try:
            values[field.name] = _parse(raw, type(field.default))
        except ValueError:
            raise ConfigError(f"{name} must be a number, got {raw!r}", field.name) from None
    return cls(**values)


def _parse(raw: str, kind: type) -> Any:
    if kind is bool:
        return raw.strip().lower() in ("1", "true", "yes", "on")
    value = kind(raw)
    if kind is float and not math.isfinite(value):
        raise ValueError(raw)
    return value
