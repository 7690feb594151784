"""A server under load: where it is, what it is called, what is added to every request to it."""
# MERGED DOC
# """A request of the benchmark: a chat completion and what is known about it beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import httpx

CONNECT_S = 10.0
ASK_S = 30.0


class EndpointError(Exception):
    """A server that cannot be measured, and why."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    `extra_body` joins every request's body. `pid` is the root of the server's process tree, where
    it runs on this machine.
    """

    name: str
    url: str
    model: str
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None

    def client(self, timeout_s: float) -> httpx.AsyncClient:
        """A client without a bound on its connections. `timeout_s` is the longest silence."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={**self.headers, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not is_local(self.url),
        )

    def session(self, timeout_s: float) -> aiohttp.ClientSession:
        """The same for streams of tokens: httpx takes 0.12 ms more for each, on cores that may be
        the server's, too. On two of them the server had 4 % fewer requests/s for it."""
        return aiohttp.ClientSession(
            base_url=f"{self.url}/",
            headers={**self.headers, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=not is_local(self.url),
        )

    def body(self, request: BenchRequest) -> bytes:
        """The JSON of a request. A server's own settings win over the workload's."""
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        whole = {**request.body, "model": self.model, **streamed, **self.extra_body}
        return json.dumps(whole).encode()

    def described(self) -> dict[str, Any]:
        """For the record. Header values may be secrets and stay out."""
        return {
            "name": self.name,
            "url": re.sub(r"//[^/@]*@", "//", self.url),
            "model": self.model,
            "extra_body": dict(self.extra_body),
            "headers": sorted(self.headers),
            "local_process": self.pid is not None,
        }


def find_endpoint(
    name: str,
    url: str,
    *,
    model: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    pid: int | None = None,
) -> Endpoint:
    """The endpoint at `url`, with the first model that it names unless one is given.

    Raises EndpointError where nobody answers or no model is named.
    """
    url = url.rstrip("/").removesuffix("/v1")
    headers = headers or {}
    if model is None:
        model = _first_model(url, headers)
    return Endpoint(name, url, model, dict(extra_body or {}), dict(headers), pid)


def is_local(url: str) -> bool:
    """Whether the address is this machine's own loopback."""
    return httpx.URL(url).host in ("127.0.0.1", "localhost", "::1")


def _first_model(url: str, headers: Mapping[str, str]) -> str:
    try:
        answer = httpx.get(
            f"{url}/v1/models", headers=dict(headers), timeout=ASK_S, trust_env=not is_local(url)
        )
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise EndpointError(f"{url} answered {status} when asked for its models") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointError(f"no server answers at {url}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} names no model; give one with --model") from error


Kind = Literal["video", "image", "text"]


@dataclass(frozen=True)
class BenchRequest:
    """One chat completion to send; plain vLLM and METok get the same bytes.

    `body` is the JSON of `/v1/chat/completions` without `stream`; it has `max_tokens`, `ignore_eos`
    and `temperature` 0. `frames` are the frames the model looks at and `video_seconds` the length
    of the video, both 0 for image and text requests. `key` names it: equal keys, equal bytes.
    `question` counts the questions about the same video before this one.
    """

    key: str
    kind: Kind
    body: dict[str, Any]
    frames: int
    video_seconds: float
    question: int = 0
