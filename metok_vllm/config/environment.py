"""Settings as fields of frozen dataclasses, and the one parser of their values as text.

Flags and environment variables are parsed here alone, so that a spelling means the same in both.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from metok_vllm.errors import ConfigError

T = TypeVar("T")

PREFIX = "METOK_"
TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
FALSE = frozenset({"0", "false", "no", "off", "n", "f"})
SHOWN_CHARACTERS = 200


def setting(default: Any, text: str) -> Any:
    """A dataclass field with its default and its line in `--help`.

    A default of None leaves the field out of the hash, because its value may be a mapping.
    """
    return dataclasses.field(default=default, hash=default is not None, metadata={"help": text})


def help_of(field: dataclasses.Field[Any]) -> str:
    """The help text of a field made with `setting`."""
    return str(field.metadata["help"])


def from_environ(cls: type[T], prefix: str, environ: Mapping[str, str] | None = None) -> T:
    """A dataclass from `<prefix><FIELD>` variables; unset or blank ones keep their defaults.

    Raises ConfigError for a value that is not of the field's type.
    """
    return cls(**read_environ(cls, prefix, environ))


def read_environ(
    cls: type[Any], prefix: str, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The fields of a dataclass that the environment sets. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    names = {field: prefix + field.name.upper() for field in dataclasses.fields(cls)}
    return {
        field.name: from_text(environ[name], field, name)
        for field, name in names.items()
        if environ.get(name, "").strip()
    }


def read_flags(cls: type[Any], texts: Mapping[str, str | None], prefix: str) -> dict[str, Any]:
    """The fields of a dataclass that flags set; `null` leaves one unset. Raises ConfigError."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        text = texts.get(field.name)
        if text is not None and text.strip() != "null":
            name = prefix + field.name.replace("_", "-")
            found[field.name] = from_text(text, field, name)
    return found


def from_text(text: str, field: dataclasses.Field[Any], name: str) -> Any:
    """The value of a field from a user's text. Raises ConfigError with `name` and the text."""
    kind, word = str(field.type), text.strip()
    try:
        if kind == "bool":
            return truth(word)
        if kind == "int":
            return int(word)
        if kind == "float":
            return _finite(word)
        if kind == "int | float":
            return int(word) if word.lstrip("+-").isdigit() else _finite(word)
    except ValueError:
        wanted = {"bool": "true or false", "int": "an integer"}.get(kind, "a number")
        raise ConfigError(f"{name} must be {wanted}, got {_cut(text)}", field.name) from None
    return _json_or_text(word, kind.split(" | "))


def truth(text: str) -> bool:
    """True or False from any of the usual spellings. Raises ValueError for other text."""
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError(f"neither true nor false: {_cut(text)}")
    return word in TRUE


def flag(name: str, default: bool, environ: Mapping[str, str] | None = None) -> bool:
    """A boolean variable. Raises ConfigError for text that is neither true nor false."""
    text = (os.environ if environ is None else environ).get(name, "")
    if not text.strip():
        return default
    try:
        return truth(text)
    except ValueError:
        raise ConfigError(f"{name} must be true or false, got {_cut(text)}") from None


def unknown_variables(
    known: Collection[str], environ: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """Unknown variables with METok's prefix, each with the most similar known name."""
    environ = os.environ if environ is None else environ
    unknown = (name for name in environ if name.startswith(PREFIX) and name not in known)
    found: dict[str, str | None] = {}
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        found[name] = near[0] if near else None
    return found


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(word)
    return value


def _json_or_text(word: str, kinds: Collection[str]) -> Any:
    try:
        value = json.loads(word)
    except ValueError:
        return word
    if "str" not in kinds or isinstance(value, str):
        return value
    # A model name may look like a number.
    return None if value is None and "None" in kinds else word


def _cut(text: str) -> str:
    shown = repr(text[: SHOWN_CHARACTERS + 1])
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
