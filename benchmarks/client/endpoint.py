"""The server under test and the requests for it. Streams need aiohttp, from the extra `bench`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import httpx

if TYPE_CHECKING:
    import aiohttp

Kind = Literal["video", "image", "text"]
CONNECT_S = 10.0
GET_TIMEOUT_S = 30.0
# The messages are the last field of a body, so that the next turns can be appended.
MESSAGES_END = b"]}"


class EndpointError(Exception):
    """The server cannot be measured; the message says why."""


@dataclass(frozen=True)
class BenchRequest:
    """One chat completion; plain vLLM and METok receive the same bytes.

    `body` is the JSON of `/v1/chat/completions` without `stream`, with `max_tokens`, `ignore_eos`
    and `temperature` 0. `frames` is the number of frames the model sees, `video_seconds` the length
    of the video; both are 0 without a video. Equal keys mean equal bytes. `question` counts the
    earlier requests about the same video. `later` are the questions of the conversation's next
    turns; `turn` counts its earlier turns.
    """

    key: str
    kind: Kind
    body: dict[str, Any]
    frames: int
    video_seconds: float
    question: int = 0
    later: tuple[str, ...] = ()
    turn: int = 0

    @property
    def turns(self) -> int:
        """The turns of the conversation that this request begins."""
        return 1 + len(self.later)


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    `extra_body` is merged into every request body. `pid` is the root of the server's process tree
    if it runs on this machine.
    """

    name: str
    url: str
    model: str
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    pid: int | None = None

    def client(self, timeout_s: float) -> httpx.AsyncClient:
        """A client with unlimited connections. `timeout_s` bounds the time without a byte."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={**self.headers, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            # A proxy of the environment cannot reach this machine's own loopback.
            trust_env=not is_local(self.url),
        )

    def session(self, timeout_s: float) -> aiohttp.ClientSession:
        """The same for token streams. httpx takes 0.12 ms of CPU more per token.

        On two shared cores that cost the measured server 4 % of its requests/s.
        """
        import aiohttp

        return aiohttp.ClientSession(
            base_url=f"{self.url}/",
            headers={**self.headers, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_S, sock_read=timeout_s),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=not is_local(self.url),
        )

    def body(self, request: BenchRequest) -> bytes:
        """The JSON of a request. `extra_body` overrides the fields of the workload."""
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        whole = {**request.body, "model": self.model, **streamed, **self.extra_body}
        messages = whole.pop("messages")
        return json.dumps({**whole, "messages": messages}).encode()

    def described(self) -> dict[str, Any]:
        """JSON for the record. Header values may be secrets and are left out."""
        return {
            "name": self.name,
            "url": re.sub(r"//[^/@]*@", "//", self.url),
            "model": self.model,
            "extra_body": dict(self.extra_body),
            "headers": sorted(self.headers),
            "local_process": self.pid is not None,
        }


def require_aiohttp() -> None:
    """Raises EndpointError with the command that installs aiohttp if it is missing."""
    if importlib.util.find_spec("aiohttp") is None:
        raise EndpointError("aiohttp is missing: pip install 'metok-vllm[bench]'")


def find_endpoint(
    name: str,
    url: str,
    *,
    model: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    pid: int | None = None,
) -> Endpoint:
    """The endpoint at `url`, with the first model that it lists unless one is given.

    Raises EndpointError if no server answers or no model is listed.
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
            f"{url}/v1/models",
            headers=dict(headers),
            timeout=GET_TIMEOUT_S,
            trust_env=not is_local(url),
        )
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise EndpointError(f"{url}/v1/models answered {status}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointError(f"no server answers at {url}: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} lists no model; give one with --model") from error
