"""vLLM's media connector under METok's media policy, registered as `metok`.

vLLM calls it for every image, video and audio of a request. It decides where media may come from,
how large they may be, and what error a client gets. vLLM's own readers turn the bytes into media.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pybase64
from vllm.exceptions import VLLMError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.audio import AudioMediaIO
from vllm.multimodal.media.base import MediaIO
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.errors import MediaError, MediaForbiddenError, MetokError
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
from metok_vllm.server.media.part_urls import is_frames_url, split_frames, split_sample
from metok_vllm.server.media.threads import in_own_thread, in_shared_thread, run_in_new_loop
from metok_vllm.server.media.video_files import (
    Encoded,
    all_of,
    is_pooled,
    load_video_file,
    open_below,
    stored,
)
from metok_vllm.server.media.video_options import resampled, video_options
from metok_vllm.server.settings import base64_size
from metok_vllm.video.frame_list import too_many_frames
from metok_vllm.video.frames import sample_indices
from metok_vllm.video.limits import MediaLimits, Transport
from metok_vllm.video.video_file import VideoFile, in_memory

logger = logging.getLogger("vllm.metok")
NAME = "metok"
# Characters of a data URL before its data.
MAX_DATA_HEADER = 1024


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
        options, url = split_sample(url)
        if options:
            media_io = resampled(media_io, options, self.limits)
        if is_frames_url(url):
            return await self._load_frames(split_frames(url), media_io)
        key, url = split_keep(url)
        encoded = await self._found_or_read(url, media_io)
        if isinstance(encoded, VideoFile):
            return await in_own_thread(lambda: load_video_file(encoded, media_io, self.limits, key))
        media = await self._decode(encoded, media_io, chosen="num_frames" in options)
        if key is not None:
            is_list = isinstance(encoded, str)
            data = encoded.encode() if isinstance(encoded, str) else encoded
            NAMED.put(key, EncodedMedia(data, is_list), self.limits.named_media_bytes)
        return media

    async def _found_or_read(self, url: str, media_io: Any) -> Encoded:
        if url.startswith(FIND):
            return await in_shared_thread(lambda: stored(url.removeprefix(FIND)))
        return await self._encoded(url, media_io)

    async def _encoded(self, url: str, media_io: Any) -> Encoded:
        scheme = url[: url.find(":") + 1].lower()
        is_video = is_pooled(media_io)
        if scheme == "data:":
            return await in_shared_thread(lambda: self._from_data_url(url, media_io))
        if scheme == "file:":
            return await in_shared_thread(lambda: self._from_file(url, is_video))
        data = await in_shared_thread(lambda: self._get_cached_bytes(url))
        if data is None:
            fetched = await self.fetcher.fetch(
                url, Transport.REMOTE if is_video else Transport.DATA
            )
            if self._media_cache_dir:
                await in_shared_thread(lambda: self._put_cached_bytes(url, fetched.read()))
        else:
            fetched = await in_shared_thread(lambda: in_memory(bytes(data), Transport.REMOTE))
        return fetched if is_video else await in_shared_thread(lambda: all_of(fetched))

    async def _load_frames(self, urls: Sequence[str], media_io: Any) -> Any:
        """A run of images as one video: fetched like images, decoded like a list of frames."""
        limits = self.limits
        if len(urls) > limits.max_frames:
            raise too_many_frames(len(urls), limits)
        keys_urls = [split_keep(url) for url in urls]
        total = 0

        async def frame(url: str) -> bytes:
            nonlocal total
            data = await self._found_or_read(url, None)
            assert isinstance(data, bytes), "an image is read into memory"
            total += len(data)
            if total > limits.max_bytes:
                raise too_large(*limits.bytes_of(Transport.DATA))
            return data

        tasks = [asyncio.ensure_future(frame(url)) for _, url in keys_urls]
        try:
            frames = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        media = await in_own_thread(lambda: load_frame_list(frames, media_io, limits))
        for (key, _), data in zip(keys_urls, frames, strict=True):
            if key is not None:
                NAMED.put(key, EncodedMedia(data), limits.named_media_bytes)
        return media

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
            raise too_large(*self.limits.bytes_of(Transport.DATA))
        payload = url[comma + 1 :]
        return payload if is_list else decode_base64(payload)

    async def _decode(self, encoded: bytes | str, media_io: Any, chosen: bool) -> Any:
        """The media, decoded in a thread: its own where it may wait for a decode worker.

        `chosen`: a list of frames was sent with a number of frames of its own.
        """
        limits = self.limits
        if isinstance(encoded, str):
            return await in_own_thread(lambda: self._decode_frames(encoded, media_io, chosen))
        if isinstance(media_io, ImageMediaIO):
            if media_io.image_mode == IMAGE_MODE:
                return await in_own_thread(lambda: load_image(encoded, media_io, limits))
            return await in_shared_thread(lambda: self._decode_image(encoded, media_io))
        in_thread = in_own_thread if is_pooled(media_io) else in_shared_thread
        return await in_thread(lambda: _load_bytes(encoded, media_io))

    def _decode_frames(self, payload: str, media_io: Any, chosen: bool) -> Any:
        count = payload.count(",") + 1
        if count > self.limits.max_frames:
            raise too_many_frames(count, self.limits)
        frames = [decode_base64(frame) for frame in payload.split(",")]
        if chosen:
            frames = [frames[index] for index in sample_indices(count, media_io.num_frames)]
        elif self._frames_chosen:
            # As vLLM does; by default all frames of a list are used.
            frames = frames[: media_io.num_frames]
        return load_frame_list(frames, media_io, self.limits)

    def _decode_image(self, data: bytes, media_io: Any) -> Any:
        check_image(data, self.limits)
        return _load_bytes(data, media_io)

    def _from_file(self, url: str, is_video: bool) -> Encoded:
        """A video as an open file, anything else as bytes."""
        root = self.allowed_local_media_path
        if root is None:
            raise MediaForbiddenError(
                "this server reads no local files (--allowed-local-media-path)", "local_file"
            )
        limit, flag = self.limits.bytes_of(Transport.LOCAL if is_video else Transport.DATA)
        try:
            file = VideoFile(open_below(root, url), Transport.LOCAL)
            if file.num_bytes > limit:
                file.close()
                raise too_large(limit, flag)
            return file if is_video else all_of(file)
        except MediaError:
            raise
        except (OSError, RuntimeError, ValueError):
            # A bad name, missing rights or a loop of links; its text would name the path.
            raise MediaError("the file cannot be read") from None


def decode_base64(text: str) -> bytes:
    """The bytes of strict base64. Raises MediaForbiddenError (400)."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise MediaForbiddenError("the data URL is not valid base64", "bad_base64") from None


def register() -> None:
    """Register the connector with vLLM; `VLLM_MEDIA_CONNECTOR=metok` selects it."""
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(MetokMediaConnector)


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
