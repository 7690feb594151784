"""One real `metok serve --demo`, shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.environment import STARTED_WITH

MAX_VIDEO_BYTES = 1 << 20  # small, so that tests of the limit stay small
IMAGE_RUN = 4


@pytest.fixture(scope="session")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `file://` may read; a file beside it may not be read."""
    root = tmp_path_factory.mktemp("media") / "allowed"
    root.mkdir()
    (root / "sample.mp4").write_bytes(SAMPLE_VIDEO.read_bytes())
    (root.parent / "secret.mp4").write_bytes(SAMPLE_VIDEO.read_bytes())
    (root / "link.mp4").symlink_to(root.parent / "secret.mp4")
    return root


@pytest.fixture(scope="session")
def server(media_root: Path) -> Iterator[ChildServer]:
    command = [
        *SERVE,
        "--demo",
        "--allowed-local-media-path",
        str(media_root),
        "--metok-media-max-bytes",
        str(MAX_VIDEO_BYTES),
        "--metok-media-frame-cache-bytes",
        str(16 << 20),
        "--metok-feature-cache-bytes",
        str(16 << 20),
        "--metok-media-fetch-timeout-s",
        "3",
        "--metok-image-runs-as-video",
        str(IMAGE_RUN),
    ]
    with ChildServer(command, environ=STARTED_WITH) as server:
        try:
            server.wait_until_ready(240)
        except Exception:
            print(server.log_tail(60))
            raise
        yield server


@pytest.fixture(scope="session")
def client(server: ChildServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
