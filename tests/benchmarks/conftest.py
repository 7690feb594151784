"""One small experiment that several files of tests read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from metok_vllm.benchmarks.client.endpoint import Endpoint
from metok_vllm.benchmarks.throughput import records
from metok_vllm.benchmarks.throughput.load import Load
from metok_vllm.benchmarks.throughput.run import Cell, Sweep
from tests.benchmarks.throughput.experiments import run_pair
from tests.benchmarks.throughput.openai_server import KnownServer

SWEEP = Sweep((8, 16), (Load(1), Load(2)), num_prompts=3, num_warmups=0, rounds=2, rest_s=0)


@pytest.fixture(scope="session")
def measured() -> tuple[list[Cell], list[Endpoint]]:
    plain = KnownServer(first_s=0.04, gap_s=0.01)
    return run_pair(plain, KnownServer(first_s=0.01, gap_s=0.01), SWEEP)


@pytest.fixture
def result(measured: tuple[list[Cell], list[Endpoint]]) -> dict[str, Any]:
    cells, endpoints = measured
    whole = records.result(cells, endpoints, {"commit": "abc"}, {"seed": 0})
    found: dict[str, Any] = json.loads(json.dumps(whole, allow_nan=False))
    return found
