"""vLLM's media connector under METok's media policy, registered as `metok`.

vLLM calls it for every image, video and audio of a request. It decides where media may come from,
how large they may be, and what error a client gets. vLLM's own readers turn the bytes into media.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pybase64
from vllm.exceptions import VLLMError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.engine.video_loader import MetokVideoLoader
from metok_vllm.errors import ConfigError, MediaError, MediaForbiddenError, MetokError
from metok_vllm.metrics import count_rejected
from metok_vllm.server.media.fetch import Fetcher, too_large
from metok_vllm.server.media.images import (
    FRAME_LIST,
    IMAGE_MODE,
    check_image,
    load_frame_list,
    load_image,
)
from metok_vllm.server.media.named import FIND, NAMED, EncodedMedia, split_keep
from metok_vllm.server.media.threads import in_own_thread, in_shared_thread, run_in_new_loop
from metok_vllm.server.settings import base64_size
from metok_vllm.video.frame_list import too_many_frames
from metok_vllm.video.limits import MediaLimits

logger = logging.getLogger("vllm.metok")
NAME = "metok"
# Characters of a data URL before its data.
MAX_DATA_HEADER = 1024
MIN_FPS, MAX_FPS = 0.001, 1000
Encoded = bytes | str  # a file's bytes, or the payload of a frame list's data URL


class MetokMediaConnector(MediaConnector):
    """Raises MediaError or a subclass; its message names the limit and never the source."""

    media_io_kwargs: dict[str, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = MediaLimits.from_env()
        self.fetcher = Fetcher(self.limits, frozenset(self.allowed_media_domains))
        options = self.media_io_kwargs.get("video", {})
        self._frames_chosen = "num_frames" in options
        video = video_options(options, self.limits)
        self.media_io_kwargs = {**self.media_io_kwargs, "video": video}

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """As load_from_url_async, for callers without an event loop."""
        return run_in_new_loop(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

    async def load_from_url_async(
        self, url: str, media_io: Any, *, fetch_timeout: int | None = None
    ) -> Any:
        """The decoded media at `url` (http, https, data or file)."""
        try:
            return await self._load(url, media_io)
        except MediaError as error:
            count_rejected(error.reason)
            raise

    async def _load(self, url: str, media_io: Any) -> Any:
        key, url = split_keep(url)
        if url.startswith(FIND):
            encoded = _stored(url.removeprefix(FIND))
        else:
            encoded = await self._encoded(url, media_io)
        media = await self._decode(encoded, media_io)
        if key is not None:
            is_list = isinstance(encoded, str)
            data = encoded.encode() if isinstance(encoded, str) else encoded
            NAMED.put(key, EncodedMedia(data, is_list), self.limits.named_media_bytes)
        return media

    async def _encoded(self, url: str, media_io: Any) -> Encoded:
        scheme = url[: url.find(":") + 1].lower()
        if scheme == "data:":
            return await in_shared_thread(lambda: self._from_data_url(url, media_io))
        if scheme == "file:":
            return await in_shared_thread(lambda: self._from_file(url))
        data = await in_shared_thread(lambda: self._get_cached_bytes(url))
        if data is None:
            data = await self.fetcher.fetch(url)
            await in_shared_thread(lambda: self._put_cached_bytes(url, data))
        return bytes(data)

    def _from_data_url(self, url: str, media_io: Any) -> Encoded:
        comma = url.find(",", 0, MAX_DATA_HEADER)
        media_type, *parameters = url[len("data:") : max(comma, 0)].split(";")
        if comma < 0 or not parameters or parameters[-1].strip() != "base64":
            raise MediaForbiddenError(
                "a data URL must be 'data:<type>;base64,<data>'", "bad_base64"
            )
        is_list = media_type.strip().lower() == FRAME_LIST and isinstance(media_io, VideoMediaIO)
        commas = 4 * self.limits.max_frames if is_list else 0
        if len(url) - comma - 1 > base64_size(self.limits.max_bytes) + commas:
            raise too_large(self.limits.max_bytes)
        payload = url[comma + 1 :]
        return payload if is_list else decode_base64(payload)

    async def _decode(self, encoded: Encoded, media_io: Any) -> Any:
        """The media, decoded in a thread: its own where it may wait for a decode worker."""
        limits = self.limits
        if isinstance(encoded, str):
            return await in_own_thread(lambda: self._decode_frames(encoded, media_io))
        if isinstance(media_io, ImageMediaIO):
            if media_io.image_mode == IMAGE_MODE:
                return await in_own_thread(lambda: load_image(encoded, media_io, limits))
            return await in_shared_thread(lambda: self._decode_image(encoded, media_io))
        is_pooled = isinstance(getattr(media_io, "video_loader", None), MetokVideoLoader)
        in_thread = in_own_thread if is_pooled else in_shared_thread
        return await in_thread(lambda: _load_bytes(encoded, media_io))

    def _decode_frames(self, payload: str, media_io: Any) -> Any:
        count = payload.count(",") + 1
        if count > self.limits.max_frames:
            raise too_many_frames(count, self.limits)
        frames = [decode_base64(frame) for frame in payload.split(",")]
        if self._frames_chosen:
            # As vLLM does; by default all frames of a list are used.
            frames = frames[: media_io.num_frames]
        return load_frame_list(frames, media_io, self.limits)

    def _decode_image(self, data: bytes, media_io: Any) -> Any:
        check_image(data, self.limits)
        return _load_bytes(data, media_io)

    def _from_file(self, url: str) -> bytes:
        root = self.allowed_local_media_path
        if root is None:
            raise MediaForbiddenError("this server reads no local files", "local_file")
        try:
            return read_below(root, url, self.limits.max_bytes)
        except MediaError:
            raise
        except (OSError, RuntimeError, ValueError):
            # A bad name, missing rights or a loop of links; its text would name the path.
            raise MediaError("the file cannot be read") from None


def read_below(root: Path, url: str, max_bytes: int) -> bytes:
    """The file at a `file://` URL, which must be below `root` after all links are followed.

    Raises MediaForbiddenError outside `root`, MediaTooLargeError over `max_bytes`, MediaError if
    it is no file, and OSError, RuntimeError or ValueError of the system.
    """
    parts = urlsplit(url)
    path = Path(unquote(parts.netloc + parts.path)).resolve()
    if root not in path.parents:
        raise MediaForbiddenError("the file is outside the folder this server reads", "local_file")
    if not path.is_file():
        raise MediaError("the file cannot be read")
    if path.stat().st_size > max_bytes:
        raise too_large(max_bytes)
    return path.read_bytes()


def video_options(chosen: dict[str, Any], limits: MediaLimits) -> dict[str, Any]:
    """Options of vLLM's video reader, within the limits. Raises ConfigError naming the field."""
    options = dict(chosen)
    fps = options.get("fps", -1)
    if not _is_frame_rate(fps):
        raise ConfigError(
            f"video.fps must be a number from {MIN_FPS} to {MAX_FPS}, or -1 for no rate",
            "media_io_kwargs.video.fps",
        )
    # With a frame rate, num_frames is only a cap.
    frames = options.get("num_frames", limits.max_frames if fps > 0 else limits.default_frames)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames == 0 or frames < -1:
        raise ConfigError(
            f"video.num_frames must be 1 to {limits.max_frames}", "media_io_kwargs.video.num_frames"
        )
    if frames > limits.max_frames:
        raise ConfigError(
            f"video.num_frames is over {limits.max_frames}, the most frames this server samples",
            "media_io_kwargs.video.num_frames",
        )
    options["num_frames"] = limits.max_frames if frames == -1 else frames
    if os.environ.get("VLLM_VIDEO_LOADER_BACKEND") == NAME:
        # Otherwise vLLM picks a loader by processor, which ignores the media limits.
        options.setdefault("video_backend", NAME)
    return options


def decode_base64(text: str) -> bytes:
    """The bytes of strict base64. Raises MediaForbiddenError (400)."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise MediaForbiddenError("the data URL is not valid base64", "bad_base64") from None


def register() -> None:
    """Register the connector with vLLM; `VLLM_MEDIA_CONNECTOR=metok` selects it."""
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(MetokMediaConnector)


def _stored(key: str) -> Encoded:
    media = NAMED.get(key)
    if media is None:
        raise MediaForbiddenError(
            "no media with this uuid is stored here; send it with its data again", "unknown_uuid"
        )
    return media.data.decode() if media.is_frame_list else media.data


def _load_bytes(data: bytes, media_io: Any) -> Any:
    """vLLM's own reader. Raises MediaError for every error of a decoder's library."""
    try:
        return media_io.load_bytes(data)
    except (MetokError, VLLMError, MemoryError):
        raise
    except Exception as error:
        kind = _kind(media_io)
        logger.info("A %s could not be read: %s", kind, type(error).__name__)
        raise MediaError(
            f"the {kind} cannot be read: it is damaged or of an unknown kind"
        ) from None


def _kind(media_io: MediaIO) -> str:
    kinds = {ImageMediaIO: "image", VideoMediaIO: "video", AudioMediaIO: "audio"}
    return next((name for io, name in kinds.items() if isinstance(media_io, io)), "media")


def _is_frame_rate(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value == -1 or MIN_FPS <= value <= MAX_FPS
