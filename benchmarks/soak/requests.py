"""Valid requests of every kind that a server accepts; mutations start from them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from PIL import Image

from metok_vllm.benchmarks.client.videos import CLIP_KINDS, Clip, encode

JSON = "application/json"
CHAT = "/v1/chat/completions"
SIZES = ((64, 48), (96, 64), (128, 96))
MAX_TOKENS = 4


@dataclass
class Request:
    """A request with the JSON `body`, or with the bytes `raw` in its place.

    `why` lists the mutations that were applied.
    """

    path: str
    body: Any
    raw: bytes | None = None
    content_type: str = JSON
    why: list[str] = field(default_factory=list)


def small_video(rng: Random, variety: int) -> bytes:
    """One of `variety` clips of 8 to 24 frames."""
    seed = rng.randrange(variety)
    width, height = SIZES[seed % len(SIZES)]
    kind = CLIP_KINDS[seed % len(CLIP_KINDS)]
    return _encoded(Clip(kind, (seed,), 8 + seed % 17, 8, width, height))


@lru_cache(maxsize=256)
def _encoded(clip: Clip) -> bytes:
    return encode(clip)


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    """A base64 data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(rng: Random, kind: str = "JPEG") -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.new("RGB", (32, 24), colour).save(file, kind)
    return file.getvalue()


def video_part(rng: Random, variety: int) -> dict[str, Any]:
    """A content part with a video; one in ten has a uuid."""
    part: dict[str, Any] = {
        "type": "video_url",
        "video_url": {"url": data_url(small_video(rng, variety))},
    }
    if rng.random() < 0.1:
        part["uuid"] = f"video-{rng.randrange(20)}"
    return part


def frames_part(rng: Random, _: int) -> dict[str, Any]:
    """A content part with a list of JPEG frames."""
    frames = [base64.b64encode(picture(rng)).decode() for _ in range(rng.randrange(1, 8))]
    return {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(frames)}}


def image_part(rng: Random, _: int) -> dict[str, Any]:
    """A content part with a picture."""
    kind = rng.choice(["JPEG", "PNG"])
    return {"type": "image_url", "image_url": {"url": data_url(picture(rng, kind), "image/x")}}


PARTS: tuple[Callable[[Random, int], dict[str, Any]], ...] = (video_part, frames_part, image_part)


def good_request(rng: Random, model: str, variety: int = 40) -> Request:
    """A request that the server answers with 200."""
    parts = [rng.choice(PARTS)(rng, variety) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    text = {"type": "text", "text": f"Which scene is number {rng.randrange(1000)}?"}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*parts, text]}]
    if rng.random() < 0.2:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    short = {"model": model, "max_tokens": MAX_TOKENS}
    kind = rng.random()
    if kind < 0.1:
        return Request("/v1/completions", {**short, "prompt": text["text"]})
    if kind < 0.15:
        for part in parts:
            part.pop("uuid", None)  # only chat completions accept it
        return Request("/tokenize", {"model": model, "messages": messages})
    if kind < 0.2:
        plain = [{"role": "user", "content": text["text"]}]
        return Request("/v1/messages", {**short, "messages": plain})
    if kind < 0.25:
        return Request(
            "/v1/responses", {"model": model, "input": text["text"], "max_output_tokens": 16}
        )
    body: dict[str, Any] = {**short, "messages": messages, "temperature": 0}
    if rng.random() < 0.3:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if rng.random() < 0.3:
        body["metok"] = rng.choice(
            [{"enabled": False}, {"preset": "max"}, {"num_events": 3}, {"stages": [1]}]
        )
    if rng.random() < 0.2:
        body["cache_salt"] = f"tenant-{rng.randrange(3)}"
    return Request(rng.choice([CHAT, CHAT, CHAT, "/invocations"]), body)
