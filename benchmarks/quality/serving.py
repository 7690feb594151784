"""The servers to measure: a running one, or `metok serve` started for each server setting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx

from metok_vllm.benchmarks.client.endpoint import GET_TIMEOUT_S, Endpoint, find_endpoint, is_local
from metok_vllm.benchmarks.client.scrape import Scrapes, Snapshot
from metok_vllm.benchmarks.quality.harness import Serve, Server
from metok_vllm.benchmarks.throughput.servers import metok_server
from metok_vllm.errors import ConfigError


def running(endpoint: Endpoint) -> Serve:
    """A running server. Settings that need a restart raise ConfigError."""
    return partial(_running, endpoint)


def started(model: str, flags: Sequence[str], metok_flags: Sequence[str]) -> Serve:
    """`metok serve` on a model, restarted for every set of server fields.

    Raises CommandError if a server does not start, with the end of its log on stderr.
    """
    return partial(_started, model, flags, metok_flags)


@contextmanager
def _running(endpoint: Endpoint, fields: Mapping[str, Any]) -> Iterator[Server]:
    if fields:
        names = ", ".join(fields)
        raise ConfigError(f"{names}: fixed when a server starts; this one runs", "settings")
    yield Server(endpoint, block_size(endpoint))


@contextmanager
def _started(
    model: str, flags: Sequence[str], metok_flags: Sequence[str], fields: Mapping[str, Any]
) -> Iterator[Server]:
    with metok_server(model, flags, [*metok_flags, *_flags(fields)]) as child:
        endpoint = find_endpoint("metok", child.url, pid=child.process.pid)
        yield Server(endpoint, block_size(endpoint))


def block_size(endpoint: Endpoint) -> int | None:
    """Tokens in a KV block from the server's metrics; None if it does not report them."""
    url = f"{endpoint.url}/metrics"
    try:
        answer = httpx.get(
            url, headers=dict(endpoint.headers), timeout=GET_TIMEOUT_S, trust_env=not is_local(url)
        )
        answer.raise_for_status()
        scrapes = Scrapes(before=Snapshot.parse(time.perf_counter(), answer.text))
    except (httpx.HTTPError, ValueError):
        return None
    pool = scrapes.pool()
    return None if pool is None else pool["block_size"]


def _flags(fields: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        found += [f"--metok-{name.replace('_', '-')}", text]
    return found
