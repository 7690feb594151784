"""Restarts under load: every request gets a whole answer, or at once a 503 with Retry-After.

`RESTARTS=20 pytest -m "" tests/faults/test_restarts.py -s` runs more of them and prints counts.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter

import httpx
import pytest

from metok_vllm.processes.child_server import SERVE, ChildServer, free_port
from tests.conformance.requests import CHAT, video_part
from tests.environment import STARTED_WITH
from tests.faults.servers import POLITE, chat
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.thorough]

RESTARTS = int(os.environ.get("RESTARTS", "3"))
READY_S, ENDS_S = 240.0, 60.0


class Load:
    """Clients that send requests without pause and retry refused ones after a moment."""

    def __init__(self, url: str) -> None:
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.phase = ""
        self._url = url
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(6)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        # Some keep their connections, some open one for each request.
        keep = httpx.Limits(max_keepalive_connections=number % 2)
        media = [video_part()] if number % 3 == 0 else []
        body = {**chat("What is it?", *media, tokens=20), "stream": number % 3 == 1}
        with httpx.Client(base_url=self._url, limits=keep, timeout=120, trust_env=False) as http:
            while not self._stop.is_set():
                outcome, answered = self._once(http, body)
                self.counts[outcome] += 1
                if not answered:
                    self._stop.wait(0.05)

    def _once(self, http: httpx.Client, body: dict[str, object]) -> tuple[str, bool]:
        try:
            response = http.post(CHAT, json=body)
        except httpx.ConnectError:
            return "refused", False
        except httpx.TransportError as error:
            kind = "stream" if body["stream"] else f"{len(json.dumps(body))} bytes"
            self.lost.append(f"{self.phase}: {kind}: {error!r}")
            return "lost", False
        if response.status_code == 503 and int(response.headers.get("retry-after", 0)) > 0:
            return "refused with Retry-After", False
        if response.status_code != 200:
            self.lost.append(f"{response.status_code}: {response.text[:200]}")
        elif body["stream"] and not _whole(response.text):
            self.lost.append(f"a stream that broke off: {response.text[-300:]}")
        elif not body["stream"] and response.json()["usage"]["completion_tokens"] != 20:
            self.lost.append(f"an answer that broke off: {response.text[-300:]}")
        return "answered", True


def _whole(stream: str) -> bool:
    events = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    return events[-1:] == ["[DONE]"] and not any("error" in json.loads(e) for e in events[:-1])


@pytest.mark.timeout(180 * RESTARTS + 120)
def test_restarts_lose_no_answer() -> None:
    port = free_port()
    command = [*POLITE, *SERVE, "--demo"]
    with Load(f"http://127.0.0.1:{port}") as load:
        for _ in range(RESTARTS):
            load.phase = "loading"
            with ChildServer(command, port=port, environ=STARTED_WITH) as server:
                server.wait_until_ready(READY_S)
                load.phase = "serving"
                before = load.counts["answered"]
                wait_until(lambda n=before: load.counts["answered"] > n + 20, ENDS_S)  # type: ignore[misc]
                load.phase = "ending"
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(ENDS_S) == 0
    print(dict(load.counts))
    assert not load.lost, "\n".join(load.lost[:20])
    assert load.counts["answered"] > 20 * RESTARTS
    assert load.counts["refused with Retry-After"]
