"""Videos as open files, which METok's decode workers read: their bytes are never held here."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from vllm.multimodal.media.base import MediaWithBytes

from metok_vllm.engine.video_loader import MetokVideoLoader
from metok_vllm.errors import MediaError, MediaForbiddenError
from metok_vllm.server.media.named import NAMED, EncodedMedia
from metok_vllm.video.limits import MediaLimits, Transport
from metok_vllm.video.video_file import VideoFile, in_memory

# A file's bytes, the payload of a frame list's data URL, or a video's open file.
Encoded = bytes | str | VideoFile


def is_pooled(media_io: Any) -> bool:
    """Whether vLLM's reader of this medium has METok's decode workers read it."""
    return isinstance(getattr(media_io, "video_loader", None), MetokVideoLoader)


def open_below(root: Path, url: str) -> BinaryIO:
    """The file at a `file://` URL, which must be below `root` after all links are followed.

    Raises MediaForbiddenError outside `root`, MediaError if it is no file, and OSError,
    RuntimeError or ValueError of the system.
    """
    parts = urlsplit(url)
    path = Path(unquote(parts.netloc + parts.path)).resolve()
    if root not in path.parents:
        raise MediaForbiddenError("the file is outside the folder this server reads", "local_file")
    # A pipe would block when it is opened, and the last name may have become a link.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MediaError("the file cannot be read")
    return os.fdopen(descriptor, "rb", buffering=0)


def load_video_file(
    file: VideoFile, media_io: Any, limits: MediaLimits, key: str | None = None
) -> MediaWithBytes[Any]:
    """A video as vLLM's reader returns it: frames and metadata. Closes the file.

    A `key` is the name under which to store a video that is small enough. Raises as `read_video`.
    """
    with file:
        frames_THWC, metadata = media_io.video_loader.load_bytes(
            file, num_frames=media_io.num_frames, **media_io.kwargs
        )
        if key is not None:
            small = file.num_bytes <= limits.named_media_bytes
            media = EncodedMedia(file.read(), transport=file.transport) if small else None
            NAMED.put(key, media, limits.named_media_bytes)
    # vLLM hashes this in place of the file, which may be too long to be read again.
    identity = hashlib.sha256(frames_THWC).digest()
    return MediaWithBytes((frames_THWC, metadata), identity)


def all_of(file: VideoFile) -> bytes:
    """The bytes of a file that is small; closes it."""
    with file:
        return file.read()


def stored(key: str) -> Encoded:
    """What is stored under a key. Raises MediaForbiddenError (400) if nothing is."""
    media = NAMED.get(key)
    if media is None:
        raise MediaForbiddenError(
            "no media with this uuid is stored here; send it with its data again", "unknown_uuid"
        )
    if media.transport is not Transport.DATA:
        return in_memory(media.data, media.transport)
    return media.data.decode() if media.is_frame_list else media.data
