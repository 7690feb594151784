"""A server of OpenAI's streaming protocol with known delays."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Endpoint
from tests.server.http_servers import served

MODEL = "known"


@dataclass
class KnownServer:
    """Waits `first_s`, then sends `tokens` words `gap_s` apart and records their times.

    It serves at most `slots` requests at a time. `refuse` keys get a 429, `break_off` keys a stream
    that ends early. Usage has `cached_tokens` if they are set. `sent_s` has times of
    `time.perf_counter` by key.
    """

    first_s: float = 0.05
    gap_s: float = 0.02
    tokens: int = 4
    slots: int = 1000
    word: str = "word"
    refuse: frozenset[str] = frozenset()
    break_off: frozenset[str] = frozenset()
    cached_tokens: int | None = None
    metrics: bool = True
    metrics_s: float = 0.0
    sent_s: dict[str, list[float]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    finished: int = 0
    scraped: int = 0

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.slots)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/models":
            await reply(send, 200, {"data": [{"id": MODEL}]})
        elif scope["path"] == "/metrics" and self.metrics:
            self.scraped += 1
            await asyncio.sleep(self.metrics_s)
            await respond(send, 200, self.exposition().encode(), b"text/plain")
        elif scope["path"] == "/v1/chat/completions":
            await self.chat(await body_of(receive), send)
        else:
            await reply(send, 404, {"error": {"message": "not here"}})

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        """One answer."""
        self.bodies.append(body)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        key = body["messages"][0]["content"]
        try:
            if key in self.refuse:
                await reply(send, 429, {"error": {"message": "too many requests"}})
                return
            async with self._slots:
                await self._stream(key, body, send)
        finally:
            self.running -= 1

    async def _stream(self, key: str, body: dict[str, Any], send: Send) -> None:
        await asyncio.sleep(self.first_s)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await chunk(send, {"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        sent = self.sent_s.setdefault(key, [])
        for number in range(self.tokens):
            if number:
                await asyncio.sleep(self.gap_s)
            if key in self.break_off:
                await send({"type": "http.response.body"})
                return
            sent.append(time.perf_counter())
            last = number == self.tokens - 1
            choice = {"delta": {"content": f"{self.word}{number} "}}
            await chunk(send, {"choices": [choice | {"finish_reason": "length" if last else None}]})
        assert body["stream_options"] == {"include_usage": True}
        usage: dict[str, Any] = {"prompt_tokens": 7, "completion_tokens": self.tokens}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        self.finished += 1
        await chunk(send, {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def exposition(self) -> str:
        """vLLM's metrics: requests took the known times and were never queued."""
        done = self.finished
        decode_s = self.gap_s * (self.tokens - 1)
        seconds = {
            "time_to_first_token": self.first_s,
            "e2e_request_latency": self.first_s + decode_s,
            "request_queue_time": 0.0,
            "request_prefill_time": self.first_s * 0.75,
            "request_decode_time": decode_s,
        }
        lines = [f'vllm:kv_cache_usage_perc{{engine="0"}} {self.running / 10}']
        lines += ['vllm:cache_config_info{block_size="16",num_gpu_blocks="101"} 1.0']
        lines += ['vllm:num_preemptions_total{engine="0"} 0']
        for name, each in seconds.items():
            lines += [f"vllm:{name}_seconds_sum {each * done}"]
            lines += [f"vllm:{name}_seconds_count {done}"]
        return "\n".join(lines) + "\n"


@contextmanager
def known_server(server: KnownServer, name: str = "server") -> Iterator[Endpoint]:
    """The server on loopback."""
    with served(server) as port:
        yield Endpoint(name, f"http://127.0.0.1:{port}", MODEL)


def requests(count: int, prefix: str = "") -> list[BenchRequest]:
    """Requests whose question is their key."""
    return [request(f"{prefix}{number}") for number in range(count)]


def request(key: str) -> BenchRequest:
    """One request with a video of 8 frames and 4 seconds."""
    body = {"messages": [{"role": "user", "content": key}], "max_tokens": 4}
    return BenchRequest(key, "video", body, frames=8, video_seconds=4.0)


async def body_of(receive: Receive) -> dict[str, Any]:
    """The JSON of a request."""
    whole, more = b"", True
    while more:
        message = await receive()
        whole += message.get("body", b"")
        more = message.get("more_body", False)
    body: dict[str, Any] = json.loads(whole)
    return body


async def chunk(send: Send, data: dict[str, Any]) -> None:
    """One server-sent event."""
    line = f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
    await send({"type": "http.response.body", "body": line, "more_body": True})


async def reply(send: Send, status: int, data: dict[str, Any]) -> None:
    """One JSON answer."""
    await respond(send, status, json.dumps(data).encode(), b"application/json")


async def respond(send: Send, status: int, body: bytes, kind: bytes) -> None:
    """One whole answer."""
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
