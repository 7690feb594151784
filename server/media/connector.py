"""vLLM's media connector under METok's media policy, registered as `metok`.

vLLM asks it for every image, video and audio of a request. What vLLM does with the bytes stays
vLLM's; where they may come from, how large they may be, and what a client is told when they cannot
be used is decided here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import pybase64
from vllm.exceptions import VLLMError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.engine.video_loader import MetokVideoLoader
from metok_vllm.errors import ConfigError, MediaError, MediaForbidden, MetokError
from metok_vllm.metrics import count_rejected
from metok_vllm.server.media.fetch import Fetcher, too_large
from metok_vllm.server.media.named import FIND, NAMED, Kept, split_keep
from metok_vllm.server.media.pictures import FRAME_LIST, IMAGE_MODE, load_frame_list, load_image
from metok_vllm.server.media.pixels import check_image
from metok_vllm.server.media.threads import in_own_thread, in_shared_thread, run_beside
from metok_vllm.server.settings import base64_size
from metok_vllm.video.frame_list import too_many_frames
from metok_vllm.video.limits import MediaLimits

logger = logging.getLogger("vllm.metok")
NAME = "metok"
# What stands before the data of a data URL is short.
MAX_DATA_HEADER = 1024
MIN_FPS, MAX_FPS = 0.001, 1000
T = TypeVar("T")
Sent = bytes | str  # a file's bytes, or the frames of a list as they stand in its data URL


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
        return run_beside(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

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
            sent = _kept(url.removeprefix(FIND))
        else:
            sent = await self._sent(url, media_io)
        media = await self._read(sent, media_io)
        if key is not None:
            is_list = isinstance(sent, str)
            kept = Kept(sent.encode() if isinstance(sent, str) else sent, is_list)
            NAMED.keep(key, kept, self.limits.named_media_bytes)
        return media

    async def _sent(self, url: str, media_io: Any) -> Sent:
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

    def _from_data_url(self, url: str, media_io: Any) -> Sent:
        comma = url.find(",", 0, MAX_DATA_HEADER)
        media_type, *parameters = url[len("data:") : max(comma, 0)].split(";")
        if comma < 0 or not parameters or parameters[-1].strip() != "base64":
            raise MediaForbidden("a data URL must be 'data:<type>;base64,<data>'", "bad_base64")
        is_list = media_type.strip().lower() == FRAME_LIST and isinstance(media_io, VideoMediaIO)
        commas = 4 * self.limits.max_frames if is_list else 0
        if len(url) - comma - 1 > base64_size(self.limits.max_bytes) + commas:
            raise too_large(self.limits.max_bytes)
        payload = url[comma + 1 :]
        return payload if is_list else decode_base64(payload)

    async def _read(self, sent: Sent, media_io: Any) -> Any:
        limits = self.limits
        if isinstance(sent, str):
            return await in_own_thread(lambda: self._read_frames(sent, media_io))
        if isinstance(media_io, ImageMediaIO):
            if media_io.image_mode == IMAGE_MODE:
                return await in_own_thread(lambda: load_image(sent, media_io, limits))
            return await in_shared_thread(lambda: self._read_image(sent, media_io))
        ours = isinstance(getattr(media_io, "video_loader", None), MetokVideoLoader)
        where = in_own_thread if ours else in_shared_thread
        return await where(lambda: _readable(lambda: media_io.load_bytes(sent), _kind(media_io)))

    def _read_frames(self, payload: str, media_io: Any) -> Any:
        count = payload.count(",") + 1
        if count > self.limits.max_frames:
            raise too_many_frames(count, self.limits)
        frames = [decode_base64(frame) for frame in payload.split(",")]
        if self._frames_chosen:
            # As vLLM does; without a choice, whoever sends a list means all of it.
            frames = frames[: media_io.num_frames]
        return load_frame_list(frames, media_io, self.limits)

    def _read_image(self, data: bytes, media_io: Any) -> Any:
        check_image(data, self.limits)
        return _readable(lambda: media_io.load_bytes(data), "image")

    def _from_file(self, url: str) -> bytes:
        root = self.allowed_local_media_path
        if root is None:
            raise MediaForbidden("this server reads no local files", "local_file")
        try:
            return read_below(root, url, self.limits.max_bytes)
        except MediaError:
            raise
        except (OSError, RuntimeError, ValueError):
            # Names that are too long, no rights, loops of links, NUL: the text would name the path.
            raise MediaError("the file cannot be read") from None


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
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise MediaForbidden("the data URL is not valid base64", "bad_base64") from None


def register() -> None:
    """Make the connector known to vLLM; `VLLM_MEDIA_CONNECTOR=metok` selects it."""
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(MetokMediaConnector)


def _kept(key: str) -> Sent:
    kept = NAMED.find(key)
    if kept is None:
        raise MediaForbidden(
            "no media with this uuid is held here; send it with its data again", "unknown_uuid"
        )
    return kept.data.decode() if kept.is_frame_list else kept.data


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
