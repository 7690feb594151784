"""One real `metok serve --demo`, shared by the tests that come from outside."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.processes.child_server import SERVE, ChildServer
from tests.environment import STARTED_WITH

MODEL = "metok-demo"
MAX_VIDEO_BYTES = 1 << 20  # small, so that tests of the limit stay small
SAMPLE_URL = "data:video/mp4;base64," + base64.b64encode(SAMPLE_VIDEO.read_bytes()).decode()


@pytest.fixture(scope="session")
def media_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `file://` may read, with the sample in it and a secret beside it."""
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


def video_part(url: str = SAMPLE_URL) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def messages(text: str, *parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chat_body(text: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A raw request body, for what the openai client would not let out."""
    body = {"model": MODEL, "messages": messages(text, *parts), "max_tokens": 4, "temperature": 0}
    return {**body, **more}


def post(server: ChildServer, body: dict[str, Any] | bytes, **more: Any) -> httpx.Response:
    url = f"{server.url}/v1/chat/completions"
    if isinstance(body, bytes):
        headers = {"content-type": "application/json"}
        return httpx.post(url, content=body, headers=headers, timeout=60, **more)
    return httpx.post(url, json=body, timeout=60, **more)
