"""Encoded media, and loading them through the connector."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

from PIL import Image
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.parse import MultiModalDataParser

from metok_vllm.server.media.connector import MetokMediaConnector
from metok_vllm.video.requester import REQUESTER, Requester
from tests.video import clips


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def payload(count: int, kind: str = "PNG") -> str:
    frames = (encoded(clips.picture(number, 32, 24), kind) for number in range(count))
    return ",".join(base64.b64encode(frame).decode() for frame in frames)


def load(
    url: str, modality: str = "video", *, requester: Requester | None = None, **io: Any
) -> Any:
    """What the connector makes of a URL."""

    async def loaded() -> Any:
        REQUESTER.set(requester)
        connector = MetokMediaConnector(media_io_kwargs=io)
        return await getattr(connector, f"fetch_{modality}_async")(url)

    return asyncio.run(loaded())


def hash_of(media: Any) -> str:
    """The identity that vLLM gives a video or an image."""
    modality = "image" if isinstance(media.media, Image.Image) else "video"
    items = MultiModalDataParser().parse_mm_data({modality: [media]})[modality]
    return str(MultiModalHasher.hash_kwargs("sha256", item=items.get_all_items_for_hash()))
