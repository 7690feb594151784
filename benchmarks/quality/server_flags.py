"""What a server of ours is told by the words of its command line, as `metok serve` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any

from metok_vllm.config import METokConfig
from metok_vllm.config.environment import read_flags
from metok_vllm.errors import ConfigError

CONFIG_FLAG = "--metok-config"
# Settings may stand in these, too, in ways that only vLLM's own parser reads.
UNREADABLE = ("--config", "--additional-config.")


def flag_value(words: Sequence[str], name: str) -> str | None:
    """The value of the last such flag, in either way of writing it."""
    found = None
    for word, following in zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if _spelt(flag) == name:
            found = value if equals else following
    return found


def served_config(
    words: Sequence[str], environ: Mapping[str, str] | None = None
) -> METokConfig | None:
    """METok's settings on a server with these words and this environment (None: our own).

    None where vLLM's configuration file may hold some. Raises ConfigError as the server would.
    """
    names = [_spelt(word.partition("=")[0]) for word in words]
    if any(name == UNREADABLE[0] or name.startswith(UNREADABLE[1]) for name in names):
        return None
    names = [field.name for field in fields(METokConfig)]
    texts = {name: flag_value(words, f"--metok-{name.replace('_', '-')}") for name in names}
    flags = read_flags(METokConfig, texts, "--metok-")
    file = flag_value(words, CONFIG_FLAG)
    return METokConfig.load({**_additional(words), **flags}, file, environ)


def _additional(words: Sequence[str]) -> Mapping[str, Any]:
    text = flag_value(words, "--additional-config")
    found = {} if text is None else _json_or_text(text)
    metok = found.get("metok", {}) if isinstance(found, Mapping) else None
    if not isinstance(metok, Mapping):
        raise ConfigError(f"--additional-config must be a JSON object, got {text!r:.80}")
    return metok


def _spelt(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
