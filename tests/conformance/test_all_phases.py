"""schemathesis as people run it, with all its phases, on the routes that are ours.

Catches: a server error, a method that is not refused, an answer of another type or form than the
OpenAPI document says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metok_vllm.processes.child_server import ChildServer
from tests.conformance.requests import CHAT
from tests.faults.servers import chat, client, running

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]

ROUTES = (CHAT, "/health/ready", "/version", "/metok/books")
PHASES = "examples,coverage,fuzzing,stateful"
CHECKS = (
    "not_a_server_error,unsupported_method,allow_header_conformance,"
    "content_type_conformance,response_schema_conformance"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ChildServer]:
    # Bounds the length of any answer.
    with running("--max-model-len", "512") as server:
        yield server


def test_all_phases(server: ChildServer, tmp_path: Path) -> None:
    included = [word for route in ROUTES for word in ("--include-path", route)]
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", *included]
    command += [f"{server.url}/openapi.json", "--phases", PHASES, "--checks", CHECKS]
    command += ["--max-examples", "60", "--seed", "1", "--request-timeout", "60", "--no-color"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert f"Tested: {len(ROUTES)}" in done.stdout
    with client(server) as http:
        assert http.post(CHAT, json=chat("And now?")).status_code == 200
