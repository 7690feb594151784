"""The model `metok` for lmms-eval: its manifest, and what it adds to a request.

Imports neither lmms-eval nor anything else of this project, so that
`pip install --no-deps metok-vllm` is enough beside lmms-eval.
"""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

CLASS = "metok_vllm.benchmarks.lmms_eval.model.Metok"
OFF = "off"
# Statuses of requests that may succeed when they are sent again.
TRANSIENT = (408, 409, 429)


def manifest() -> Any:
    """The entry point of group `lmms_eval.models`: the manifest of `--model metok`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("metok", chat_class_path=CLASS)


def request_settings(metok: object) -> dict[str, Any] | None:
    """The `metok` object of every request, from the model argument `metok=`.

    A preset's name, `off` for dense, or an object as JSON. Empty: None, the server's own settings.
    Raises ValueError for anything else.
    """
    if metok is None or metok == "":
        return None
    if isinstance(metok, str) and metok.lstrip().startswith("{"):
        metok = json.loads(metok)
    if isinstance(metok, Mapping):
        return dict(metok)
    # lmms-eval reads `off` as text in some versions and as a boolean in others.
    if metok is False or metok == OFF:
        return {"enabled": False}
    if isinstance(metok, str):
        return {"preset": metok}
    raise ValueError(f"metok= takes a preset's name, off or a JSON object, got {metok!r:.80}")


def request_body(
    payload: Mapping[str, Any], settings: Mapping[str, Any] | None, inline: bool
) -> dict[str, Any]:
    """lmms-eval's arguments for the openai client, with METok's settings.

    `inline` replaces local files by data URLs, so that the server needs no
    `--allowed-local-media-path`. Raises OSError for a file that cannot be read.
    """
    body = dict(payload)
    if settings is not None:
        body["extra_body"] = {**(payload.get("extra_body") or {}), "metok": dict(settings)}
    if inline:
        body["messages"] = [
            {**message, "content": [_inlined(part) for part in message["content"]]}
            for message in payload["messages"]
        ]
    return body


def question_of(payload: Mapping[str, Any]) -> str:
    """The text of a request."""
    parts = [part for message in payload["messages"] for part in message["content"]]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def is_refusal(status: int) -> bool:
    """Whether a response with this HTTP status would be the same at every further try."""
    return 400 <= status < 500 and status not in TRANSIENT


def unusable(report: Mapping[str, Any] | None, settings: Mapping[str, Any] | None) -> str | None:
    """Why an answer with this `metok` object does not measure `settings`; None if it does."""
    if report is None:
        return "an answer has no metok object: no METok server, or no video"
    off = settings is not None and (
        settings.get("enabled") is False or settings.get("preset") == OFF
    )
    if report.get("applied") is False and not off:
        return f"METok was not applied: {report.get('reason', 'no reason given')}"
    return None


def _inlined(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] != "video_url":
        return dict(part)
    address = urlsplit(part["video_url"]["url"])
    if address.scheme != "file":
        return dict(part)
    path = Path(unquote(address.path))
    kind = mimetypes.guess_type(path.name)[0] or "video/mp4"
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "video_url", "video_url": {"url": f"data:{kind};base64,{data}"}}
