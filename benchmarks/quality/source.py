"""What is asked, from a command line: a checkpoint of ours, a model, or a server that runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from metok_vllm.benchmarks.quality.geometry import MODEL_DTYPE, Geometry
from metok_vllm.benchmarks.quality.harness import Serve
from metok_vllm.benchmarks.quality.serving import running, started
from metok_vllm.benchmarks.throughput.checkpoints import checkpoint
from metok_vllm.benchmarks.throughput.endpoint import find_endpoint
from metok_vllm.errors import ConfigError
from metok_vllm.server.commands.console import complain


@dataclass(frozen=True)
class Source:
    """Exactly one of `base_url`, `checkpoint` and `model` says where answers come from.

    With `base_url`, `name` is the model to ask for; a running server does not tell its sizes, so
    `model` (path or hub name) and `dtype` may stand beside it.
    """

    base_url: str | None = None
    checkpoint: str | None = None
    model: str | None = None
    name: str | None = None
    dtype: str | None = None
    flags: Sequence[str] = ()
    metok_flags: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def opened(source: Source) -> Iterator[tuple[Serve, Geometry | None]]:
    """How to get a server, and the model's sizes where they can be known."""
    if source.base_url is not None:
        endpoint = find_endpoint(
            "server", source.base_url, model=source.name, headers=source.headers
        )
        yield running(endpoint), _running_geometry(source)
        return
    if source.checkpoint is None:
        assert source.model is not None
        yield _started(source.model, source.flags, source.metok_flags)
        return
    with checkpoint(source.checkpoint) as made:
        flags, metok_flags = (*made.flags, *source.flags), (*made.metok_flags, *source.metok_flags)
        yield _started(made.model, flags, metok_flags)


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value of the last such flag, in either way of writing it."""
    found = None
    for flag, following in zip(flags, [*flags[1:], None], strict=True):
        if flag == name:
            found = following
        elif flag.startswith(f"{name}="):
            found = flag.partition("=")[2]
    return found


def _started(
    model: str, flags: Sequence[str], metok_flags: Sequence[str]
) -> tuple[Serve, Geometry | None]:
    try:
        geometry = Geometry.of_model(model, flag_value(flags, "--dtype") or MODEL_DTYPE)
    except ConfigError as error:
        complain(f"KV cache is shown as a share only: {error}")
        geometry = None
    return started(model, flags, metok_flags), geometry


def _running_geometry(source: Source) -> Geometry | None:
    if source.model is None:
        return None
    if source.dtype is None:
        raise ConfigError("a running server does not tell its dtype: say --dtype", "dtype")
    return Geometry.of_model(source.model, source.dtype)
