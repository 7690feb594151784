"""The source of the answers: a benchmark checkpoint, a model, or a running server.

METok's settings on a server are read from the words of its command line, as `metok serve` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from metok_vllm.benchmarks.client.endpoint import find_endpoint
from metok_vllm.benchmarks.quality.geometry import AUTO, Geometry
from metok_vllm.benchmarks.quality.harness import Serve
from metok_vllm.benchmarks.quality.serving import running, started
from metok_vllm.benchmarks.throughput.checkpoints import ALL_SIZES, checkpoint
from metok_vllm.benchmarks.throughput.qwen_sizes import QwenSizes
from metok_vllm.config import METokConfig
from metok_vllm.config.environment import read_flags
from metok_vllm.console import complain
from metok_vllm.demo import CONFIG_FILE
from metok_vllm.errors import ConfigError
from metok_vllm.hf_loading import model_family
from metok_vllm.video import MediaLimits

DEMO = "demo"
CACHE_FLAG = "--kv-cache-dtype"
FRAMES_FLAG = "--metok-media-max-frames"


@dataclass(frozen=True)
class Source:
    """One of `base_url`, `checkpoint` and `model` gives the server.

    With `base_url`, `name` is the served model name. A running server does not report its sizes, so
    `model` (path or hub name) and `dtype` may be given as well. `config_file` is the METok YAML
    file that the server starts, or was started, with.
    """

    base_url: str | None = None
    checkpoint: str | None = None
    model: str | None = None
    name: str | None = None
    dtype: str | None = None
    flags: Sequence[str] = ()
    metok_flags: Sequence[str] = ()
    config_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_own_config(self) -> bool:
        """Whether the user has given a METok configuration for the server."""
        words = (*self.flags, *self.metok_flags)
        return self.config_file is not None or flag_value(words, CONFIG_FLAG) is not None

    @property
    def metok_words(self) -> tuple[str, ...]:
        """METok's flags of a server to start; the demo uses its own file, as `serve --demo`."""
        file = self.config_file
        if self.checkpoint == DEMO and not self.has_own_config:
            file = CONFIG_FILE
        return (*self.metok_flags, *(() if file is None else (CONFIG_FLAG, str(file))))

    def check_frames(self, frames: Sequence[int]) -> None:
        """Raise ConfigError if a server to start would refuse so many frames.

        A running server does not report its limit; it refuses the first question.
        """
        if self.base_url is not None:
            return
        given = flag_value((*self.flags, *self.metok_flags), FRAMES_FLAG)
        limits = MediaLimits.from_env()
        most = int(given) if given is not None and given.isdecimal() else limits.max_frames
        if max(frames) > most:
            raise ConfigError(
                f"--frames {max(frames)} is over {most}, the most frames that the server samples; "
                f"{FRAMES_FLAG} raises it",
                "frames",
            )

    def config(self) -> METokConfig | None:
        """METok's settings on the server; of a running one, those of `config_file`.

        None if they are unknown. Raises ConfigError for invalid settings.
        """
        if self.base_url is None:
            return served_config((*self.flags, *self.metok_words), family=self._family())
        if self.config_file is None:
            return None
        return METokConfig.load(config_file=self.config_file, environ={}, family=self._family())

    def _family(self) -> str | None:
        if self.model is not None:
            return model_family(self.model)
        sizes = ALL_SIZES.get(self.checkpoint or "")
        return sizes.config["model_type"] if isinstance(sizes, QwenSizes) else None


@contextmanager
def opened(source: Source) -> Iterator[tuple[Serve, Geometry | None]]:
    """A function that provides the server, and the model's sizes if they are known."""
    if source.base_url is not None:
        endpoint = find_endpoint(
            "server", source.base_url, model=source.name, headers=source.headers
        )
        yield running(endpoint), _running_geometry(source)
        return
    if source.checkpoint is None:
        assert source.model is not None
        yield _started(source.model, source.flags, source.metok_words)
        return
    with checkpoint(source.checkpoint) as made:
        flags, metok_flags = (*made.flags, *source.flags), (*made.metok_flags, *source.metok_words)
        yield _started(made.model, flags, metok_flags)


def _started(
    model: str, flags: Sequence[str], metok_flags: Sequence[str]
) -> tuple[Serve, Geometry | None]:
    words = (*flags, *metok_flags)
    dtype, cache_dtype = (flag_value(words, name) or AUTO for name in ("--dtype", CACHE_FLAG))
    try:
        geometry = Geometry.of_model(model, dtype, cache_dtype)
    except ConfigError as error:
        complain(f"KV cache is shown as a share only: {error}")
        geometry = None
    return started(model, flags, metok_flags), geometry


def _running_geometry(source: Source) -> Geometry | None:
    if source.model is None:
        return None
    if source.dtype is None:
        raise ConfigError("a running server does not report its dtype: give --dtype", "dtype")
    return Geometry.of_model(source.model, source.dtype)


CONFIG_FLAG = "--metok-config"
# Flags whose METok settings only vLLM's own parser can read.
UNREADABLE = ("--config", "--additional-config.")


def flag_value(words: Sequence[str], name: str) -> str | None:
    """The value of the last such flag, written with `=` or as the next word."""
    found = None
    for word, following in zip_longest(words, words[1:]):
        flag, equals, value = word.partition("=")
        if _spelt(flag) == name:
            found = value if equals else following
    return found


def served_config(
    words: Sequence[str], environ: Mapping[str, str] | None = None, family: str | None = None
) -> METokConfig | None:
    """METok's settings on a server with these words and this environment (None: our own).

    `family` is the model's `model_type`. None if vLLM's configuration file may hold some. Raises
    ConfigError as the server does.
    """
    names = [_spelt(word.partition("=")[0]) for word in words]
    if any(name == UNREADABLE[0] or name.startswith(UNREADABLE[1]) for name in names):
        return None
    names = [field.name for field in fields(METokConfig)]
    texts = {name: flag_value(words, f"--metok-{name.replace('_', '-')}") for name in names}
    flags = read_flags(METokConfig, texts, "--metok-")
    file = flag_value(words, CONFIG_FLAG)
    return METokConfig.load({**_additional(words), **flags}, file, environ, family)


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
