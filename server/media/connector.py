"""vLLM's media connector under METok's media policy, registered as `metok`.

vLLM asks it for every image, video and audio of a request. What vLLM does with the bytes stays
vLLM's; where they may come from, how large they may be, and what a client is told when they cannot
be used is decided here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from vllm.exceptions import VLLMError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.connector import global_thread_pool
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.errors import ConfigError, MediaError, MediaForbidden, MetokError
from metok_vllm.metrics import count_rejected
from metok_vllm.server.media.fetch import Fetcher, too_large
from metok_vllm.server.media.pixels import check_frames, check_image, too_many_frames
from metok_vllm.server.settings import base64_size
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.memory import MEMORY

logger = logging.getLogger("vllm.metok")
NAME = "metok"
FRAME_LIST = "video/jpeg"
MIN_FPS, MAX_FPS = 0.001, 1000
T = TypeVar("T")


class MetokMediaConnector(MediaConnector):  # type: ignore[misc]
    """Raises MediaError and its kinds, whose message names the limit and never the source."""

    media_io_kwargs: dict[str, dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = MediaLimits.from_env()
        self.fetcher = Fetcher(self.limits, frozenset(self.allowed_media_domains))
        given = self.media_io_kwargs
        chosen = given.get("video", {})
        self._frames_chosen = "num_frames" in chosen
        self.media_io_kwargs = {**given, "video": video_options(chosen, self.limits)}

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """As load_from_url_async, for callers without an event loop."""
        return _run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

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
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return await _in_thread(lambda: self._load_data(url, media_io))
        if scheme == "file":
            return await _in_thread(lambda: self._load_file(url, media_io))
        data = await _in_thread(lambda: self._get_cached_bytes(url))
        if data is None:
            data = await self.fetcher.fetch(url)
            await _in_thread(lambda: self._put_cached_bytes(url, data))
        return await _in_thread(lambda: self._decode(data, media_io))

    def _load_data(self, url: str, media_io: Any) -> Any:
        header, comma, payload = url[len("data:") :].partition(",")
        media_type, *parameters = header.split(";")
        if not comma or not parameters or parameters[-1].strip() != "base64":
            raise MediaForbidden("a data URL must be 'data:<type>;base64,<data>'", "bad_base64")
        if media_type.strip().lower() == FRAME_LIST and isinstance(media_io, VideoMediaIO):
            return self._load_frames(payload, media_io)
        if len(payload) > base64_size(self.limits.max_bytes):
            raise too_large(self.limits.max_bytes)
        return self._decode(decode_base64(payload), media_io)

    def _load_frames(self, payload: str, media_io: Any) -> Any:
        if len(payload) > base64_size(self.limits.max_bytes) + 4 * self.limits.max_frames:
            raise too_large(self.limits.max_bytes)
        count = payload.count(",") + 1
        if count > self.limits.max_frames:
            raise too_many_frames(count, self.limits)
        limits = self.limits
        size = check_frames([decode_base64(frame) for frame in payload.split(",")], limits)
        if not self._frames_chosen:
            # vLLM would drop frames beyond its default number; whoever sends a list means it.
            media_io.num_frames = count
        with MEMORY.reserve(size, limits.max_pending_bytes, limits.decode_deadline_s) as held:
            video = _readable(lambda: media_io.load_base64(FRAME_LIST, payload), "video")
            held.hand_over(video.media[0], size)
        return video

    def _load_file(self, url: str, media_io: Any) -> Any:
        root = self.allowed_local_media_path
        if root is None:
            raise MediaForbidden("this server reads no local files", "local_file")
        try:
            data = read_below(root, url, self.limits.max_bytes)
        except MediaError:
            raise
        except (OSError, RuntimeError, ValueError):
            # Names that are too long, no rights, loops of links, NUL: the text would name the path.
            raise MediaError("the file cannot be read") from None
        return self._decode(data, media_io)

    def _decode(self, data: bytes, media_io: Any) -> Any:
        kind = _kind(media_io)
        if kind == "image":
            check_image(data, self.limits)
        return _readable(lambda: media_io.load_bytes(data), kind)


def read_below(root: Path, url: str, max_bytes: int) -> bytes:
    """The file at a `file://` URL, which must stand below `root` with all links followed.

    Raises MediaForbidden outside `root`, MediaTooLarge, and what the system raises.
    """
    parts = urlsplit(url)
    path = Path(unquote(parts.netloc + parts.path)).resolve()
    if root not in path.parents:
        raise MediaForbidden("the file is outside the folder this server reads", "local_file")
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
    # With a frame rate, the number of frames is only the cap.
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
        # vLLM picks loaders by processor otherwise, and those know no limits.
        options.setdefault("video_backend", NAME)
    return options


def decode_base64(text: str) -> bytes:
    """Strict base64. Raises MediaForbidden, which is a 400."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise MediaForbidden("the data URL is not valid base64", "bad_base64") from None


def register() -> None:
    """Make the connector known to vLLM; `VLLM_MEDIA_CONNECTOR=metok` selects it."""
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(MetokMediaConnector)


def _readable(load: Callable[[], T], kind: str) -> T:
    try:
        return load()
    except (MetokError, VLLMError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise whatever their libraries raise; to a client it is one thing.
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


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(global_thread_pool, work)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # In a thread of its own: the caller may be inside a running event loop.
    result: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
