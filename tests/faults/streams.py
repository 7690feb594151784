"""A streamed answer that a thread reads while the test injects a fault."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any

import httpx

from tests.waiting import wait_until

BEGUN_S = 30.0
END_S = 120.0


class Stream:
    """Reads one streamed answer in a thread, up to its end.

    `events` are parsed; `done` is True if `[DONE]` came last; `failure` is the error that broke the
    connection, if any.
    """

    def __init__(self, http: httpx.Client, body: dict[str, Any]) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 0
        self.done = False
        self.failure: httpx.TransportError | None = None
        self._http, self._body = http, {**body, "stream": True}
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Stream:
        """Returns once the answer's first tokens have arrived."""
        self._thread.start()
        wait_until(lambda: len(self.events) > 2 or not self._thread.is_alive(), BEGUN_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.join(END_S)

    def finish(self) -> None:
        """Wait for the end; fails the test when there is none."""
        wait_until(lambda: not self._thread.is_alive(), END_S)

    def _read(self) -> None:
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=self._body) as response:
                self.status = response.status_code
                for line in response.iter_lines():
                    self.done = line == "data: [DONE]" or (self.done and not line)
                    if line.startswith("data: {"):
                        self.events.append(json.loads(line[6:]))
        except httpx.TransportError as failure:
            self.failure = failure
