"""Our figures compared with the server's real sleeps and with other clients."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from starlette.types import Send

from metok_vllm.benchmarks.client.endpoint import Endpoint, find_endpoint
from metok_vllm.benchmarks.throughput.foreign import compare_figures
from metok_vllm.benchmarks.throughput.foreign_clients import (
    NAMES,
    Client,
    guidellm_client,
    our_client,
    vllm_client,
)
from metok_vllm.benchmarks.throughput.load import Load
from metok_vllm.benchmarks.throughput.run import run_once
from metok_vllm.benchmarks.throughput.servers import PlainServer
from tests.benchmarks.throughput.openai_server import KnownServer, known_server, requests

# After a rest a busy machine's caches are cold: a request is 20 to 47 ms on its way.
FIRST_S, GAP_S, TOKENS = 1.6, 0.1, 8
WHOLE_S = FIRST_S + GAP_S * (TOKENS - 1)
NEAR = 0.05
# guidellm's mock server sleeps for its configured time and then prepares a text. On a slow machine
# the first token came after 1.70 s in place of 1.6.
MOCK_FIRST_S = 4.0
# A busy machine spoils single attempts, a client with other rules all of them. If timers are late
# in all attempts, a difference of 5 % cannot be measured.
ATTEMPTS = 3
CALM_S = 0.005

GUIDELLM = shutil.which("guidellm")
needs_guidellm = pytest.mark.skipif(GUIDELLM is None, reason="no guidellm on the PATH")
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM")


@dataclass
class SlowServer(KnownServer):
    """Records arrival times too, so that late timers of the machine do not count."""

    first_s: float = FIRST_S
    gap_s: float = GAP_S
    tokens: int = TOKENS
    arrived_s: dict[str, float] = field(default_factory=dict)

    async def chat(self, body: dict[str, Any], send: Send) -> None:
        # guidellm requests usage with each token.
        body["stream_options"].pop("continuous_usage_stats", None)
        self.arrived_s[body["messages"][0]["content"]] = time.perf_counter()
        await super().chat(body, send)


def slept(in_flight: int) -> dict[str, float]:
    """Our figures from those of the server's own clock."""
    server = SlowServer()
    with known_server(server) as endpoint:
        run = asyncio.run(run_once(endpoint, requests(4 * in_flight), Load(in_flight)))
    keys = [outcome.key for outcome in run.outcomes]
    began, sent = [server.arrived_s[key] for key in keys], [server.sent_s[key] for key in keys]
    first_s = statistics.median(times[0] - at for at, times in zip(began, sent, strict=True))
    whole_s = statistics.median(times[-1] - at for at, times in zip(began, sent, strict=True))
    assert first_s > 0.99 * FIRST_S
    assert whole_s > 0.99 * WHOLE_S
    expected = {
        "requests_per_s": in_flight / whole_s,
        "output_tokens_per_s": in_flight * TOKENS / whole_s,
        "ttft_s_p50": first_s,
        "inter_token_s_p50": float(np.median(np.diff(sent))),
        "end_to_end_s_p50": whole_s,
    }
    found = run.measures.rates() | run.measures.times()
    ours = {name: found[name] or 0.0 for name in expected}
    return dict(compare_figures("ours", in_flight, [expected], [ours]).difference)


def closest(attempt: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The smallest differences of all attempts on a calm machine."""
    found: list[dict[str, float]] = []
    lates_s = []
    for _ in range(ATTEMPTS):
        lates_s.append(late_timers_s())
        if lates_s[-1] >= CALM_S:
            continue
        differences = attempt()
        lates_s.append(late_timers_s())
        if lates_s[-1] < CALM_S:
            found.append(differences)
            if worst(differences) < NEAR:
                break
    if not found:
        pytest.skip(f"the machine is not calm: timers are {1000 * max(lates_s):.0f} ms late")
    return min(found, key=worst)


def late_timers_s() -> float:
    """The 90th percentile of the lateness of fifty timers."""
    late_s = []
    for _ in range(50):
        begin = time.perf_counter()
        time.sleep(0.02)
        late_s.append(time.perf_counter() - begin - 0.02)
    return float(np.percentile(late_s, 90))


def worst(difference: Mapping[str, float]) -> float:
    return max(map(abs, difference.values()))


def from_ours(client: Client, endpoint: Endpoint) -> dict[str, float]:
    """One round of a client compared with one of ours."""
    batch = requests(16)
    for request in batch:
        request.body["max_tokens"] = TOKENS
    pair = compare_figures("it", 4, [our_client(endpoint, batch, 4)], [client(endpoint, batch, 4)])
    return dict(pair.difference)


@pytest.mark.thorough
@pytest.mark.parametrize("in_flight", [1, 4])
def test_our_figures_equal_the_sleeps(in_flight: int) -> None:
    found = closest(lambda: slept(in_flight))
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=NEAR)


@needs_vllm
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_vllm_bench_serve_agrees() -> None:
    server = SlowServer()
    with known_server(server) as endpoint:
        found = closest(lambda: from_ours(vllm_client, endpoint))
    assert tuple(found) == NAMES
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=NEAR)
    ours, theirs = server.bodies[0], server.bodies[-1]
    theirs["max_tokens"] = theirs.pop("max_completion_tokens")
    assert theirs.pop("ignore_eos", None) is None
    assert set(ours) == set(theirs)
    assert ours["messages"][0].keys() == theirs["messages"][0].keys()


@needs_guidellm
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_guidellm_agrees() -> None:
    assert GUIDELLM is not None
    with known_server(SlowServer()) as endpoint:
        client = partial(guidellm_client, GUIDELLM)
        found = closest(lambda: from_ours(client, endpoint))
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=NEAR)


@needs_guidellm
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_guidellms_server_has_its_configured_times() -> None:
    assert GUIDELLM is not None
    options = ["--ttft-ms", str(1000 * MOCK_FIRST_S), "--itl-ms", str(1000 * GAP_S)]
    whole_s = MOCK_FIRST_S + GAP_S * (TOKENS - 1)
    expected = {
        "requests_per_s": 4 / whole_s,
        "ttft_s_p50": MOCK_FIRST_S,
        "inter_token_s_p50": GAP_S,
        "end_to_end_s_p50": whole_s,
    }
    command = [GUIDELLM, "mock-server", *options, "--output-tokens", str(TOKENS)]
    with PlainServer(command) as server:
        server.wait_until_ready(120)
        endpoint = find_endpoint("guidellm", server.url)
        our_client(endpoint, requests(4), 4)
        found = closest(lambda: from_ours(lambda *_: expected, endpoint))
    assert found == pytest.approx(dict.fromkeys(expected, 0.0), abs=NEAR)
