"""Requests to a served demo model, and how its responses are read."""

from __future__ import annotations

import base64
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.processes.child_server import ChildServer

MODEL = "metok-demo"
CHAT = "/v1/chat/completions"


def as_url(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


SAMPLE_URL = as_url(SAMPLE_VIDEO.read_bytes())


def video_part(url: str = SAMPLE_URL) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def messages(text: str, *parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def chat_body(text: str, *parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request body, also for what the openai client would refuse to send."""
    body = {"model": MODEL, "messages": messages(text, *parts), "max_tokens": 4, "temperature": 0}
    return {**body, **more}


def post(server: ChildServer, body: dict[str, Any] | bytes, **more: Any) -> httpx.Response:
    url = server.url + CHAT
    if isinstance(body, bytes):
        headers = {"content-type": "application/json"}
        return httpx.post(url, content=body, headers=headers, timeout=60, **more)
    return httpx.post(url, json=body, timeout=60, **more)


def is_envelope(response: httpx.Response, status: int) -> str:
    """The message of an error in OpenAI's envelope with this status."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    assert error["message"].strip()
    assert error["type"]
    return str(error["message"])


def metric(server: ChildServer, name: str, **labels: str) -> float:
    """The sum of the samples with this name and at least these labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
