"""Sends numbered requests from several threads and collects the answers' statuses and faults."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import httpx

from metok_vllm.benchmarks.soak.mutations import encoded
from metok_vllm.benchmarks.soak.requests import Request

# Statuses of an overloaded server, which are no fault.
BUSY = frozenset({429, 503, 504})
TIMEOUT_S = 60.0
ANTHROPIC = "/v1/messages"


@dataclass
class Outcome:
    """The statuses of a run. `odd` lists the requests with a server error, a broken error envelope
    or no answer, by number."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = -1
    odd: list[dict[str, Any]] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, number: int, status: str, seconds: float, odd: str | None, why: Any) -> None:
        with self._lock:
            self.statuses[status] += 1
            if seconds > self.slowest_s:
                self.slowest_s, self.slowest = seconds, number
            if odd is not None:
                self.odd.append({"number": number, "status": status, "what": odd, "why": why})


def send_all(
    url: str,
    headers: dict[str, str],
    numbers: Iterable[int],
    make: Callable[[int], Request],
    threads: int,
) -> Outcome:
    """Send request `make(n)` for every number, `threads` of them at a time."""
    outcome = Outcome()
    limits = httpx.Limits(max_connections=threads, max_keepalive_connections=threads)
    with httpx.Client(
        base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False, limits=limits
    ) as client:

        def one(number: int) -> None:
            request = make(number)
            status, seconds, odd = send(client, request)
            outcome.add(number, status, seconds, odd, [request.path, *request.why])

        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(one, numbers):
                pass
    return outcome


def send(client: httpx.Client, request: Request) -> tuple[str, float, str | None]:
    """Returns the status, the seconds, and the answer's fault or None."""
    content = encoded(request)
    headers = {"content-type": request.content_type} if request.content_type else {}
    began = time.monotonic()
    try:
        try:
            answer = client.post(request.path, content=content, headers=headers)
        except httpx.RemoteProtocolError:
            # The server has just closed a kept-alive connection: send again, as clients do.
            answer = client.post(request.path, content=content, headers=headers)
    except httpx.HTTPError as error:
        return "no answer", time.monotonic() - began, type(error).__name__
    seconds = time.monotonic() - began
    return str(answer.status_code), seconds, oddness(answer)


def oddness(answer: httpx.Response) -> str | None:
    """The fault of an answer, or None: a server error or a broken error envelope."""
    status = answer.status_code
    if status < 400:
        streams = "event-stream" in answer.headers.get("content-type", "")
        return _in_stream(answer.text) if streams else None
    if status >= 500 and status not in BUSY:
        return answer.text[:300]
    try:
        error = answer.json()["error"]
        whole = bool(error["message"].strip()) and error.get("code") in (status, None)
        if not answer.url.path.startswith(ANTHROPIC):  # errors of that protocol have no code
            whole = whole and "code" in error
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    return None if whole else f"no envelope: {answer.text[:200]}"


def _in_stream(text: str) -> str | None:
    """The server error that ended a stream, or None."""
    for line in text.splitlines():
        if line.startswith('data: {"error"'):
            code = json.loads(line.removeprefix("data: "))["error"].get("code")
            if code == 500:
                return line[:300]
    return None
