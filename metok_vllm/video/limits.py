"""Limits on the size and cost of media: one frozen object, read from `METOK_MEDIA_*`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from enum import StrEnum

from metok_vllm.config.environment import from_environ, setting, truth
from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import ConfigError

ENV_PREFIX = "METOK_MEDIA_"
FLAG_PREFIX = "--metok-media-"
# With more, frames of a decoded sample of 256 MiB would be smaller than 295 x 295 pixels.
MOST_FRAMES = 1024
MAY_BE_ZERO = ("max_redirects", "frame_cache_bytes", "named_media_bytes")


class Transport(StrEnum):
    """How a video reaches the server; its limits of size and length depend on that."""

    DATA = "data"  # inside the request
    REMOTE = "remote"  # fetched from an http(s) URL
    LOCAL = "local"  # a file below the folder that the server reads


@dataclass(frozen=True)
class MediaLimits:
    """Limits for media that clients send. Every field is `METOK_MEDIA_<FIELD>` in the environment.

    Sizes are bytes, times are seconds. `default_frames` over `max_frames` becomes that.
    Raises ConfigError for a value out of range.
    """

    max_bytes: int = setting(
        64 << 20, "bytes of one video in a request, of an image, and of a list of frames"
    )
    max_remote_bytes: int = setting(512 << 20, "bytes of a video that is fetched from a URL")
    max_local_bytes: int = setting(8 << 30, "bytes of a video that is a local file")
    max_duration_s: float = setting(7200.0, "seconds a video may last that is no local file")
    max_local_duration_s: float = setting(14400.0, "seconds a local file may last")
    max_videos: int = setting(8, "videos in one request")
    max_frames: int = setting(128, "frames sampled from a video at most")
    default_frames: int = setting(32, "frames sampled where the request does not say")
    max_walked_frames: int = setting(
        36_000, "frames decoded to reach those sampled; more is refused"
    )
    max_walked_pixels: int = setting(
        21_000_000_000,
        "pixels decoded to reach the frames sampled; more is refused (the default: 600 s of "
        "1280 x 720 at 30 fps with one keyframe, or 64 frames of 1920 x 1080 with one each 10 s)",
    )
    max_frame_pixels: int = setting(16_000_000, "pixels of one frame or image")
    max_decoded_bytes: int = setting(
        256 << 20, "bytes of a decoded sample; larger frames are scaled down"
    )
    max_pending_bytes: int = setting(
        2 << 30, "bytes of all decoded samples that the server holds; more videos wait"
    )
    frame_cache_bytes: int = setting(
        0, "bytes of these kept for the next question about a video; 0: none"
    )
    named_media_bytes: int = setting(
        256 << 20, "bytes of media kept under a client's uuid; 0: none"
    )
    fetch_timeout_s: float = setting(30.0, "seconds to fetch a video or image")
    decode_deadline_s: float = setting(
        30.0, "seconds to decode a video; then its process is killed"
    )
    decode_workers: int = setting(2, "decoding processes")
    max_waiting: int = setting(64, "videos and images that wait for a decoder; more get 429")
    worker_memory_bytes: int = setting(4 << 30, "bytes of memory a decoding process may use")
    max_redirects: int = setting(3, "redirects followed, each checked like the first address")
    max_fetched_bytes: int = setting(
        1 << 30,
        "bytes of fetched media until they are decoded; above it the largest fetch ends",
    )
    allow_private_hosts: bool | str = setting(
        False,
        "private, loopback and link-local hosts that may be fetched from: a comma list of "
        "host:port, address:port or network/bits:port (ports 80 and 443 if none is given); true "
        "allows all on every port",
    )
    backend: str = setting("auto", "auto (PyAV), decord or pyav")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str):
                continue
            minimum = 0 if field.name in MAY_BE_ZERO else 1e-3
            if not minimum <= value < math.inf:
                raise ConfigError(
                    f"media limit {field.name} must be positive and finite, got {value}",
                    field.name,
                )
        if self.max_frames > MOST_FRAMES:
            raise ConfigError(
                f"media limit max_frames must be at most {MOST_FRAMES}, got {self.max_frames}",
                "max_frames",
            )
        # Lowering max_frames alone must not fail.
        object.__setattr__(self, "default_frames", min(self.default_frames, self.max_frames))
        PrivateHosts.of(self.allow_private_hosts)
        if isinstance(self.allow_private_hosts, str):
            with suppress(ValueError):
                object.__setattr__(self, "allow_private_hosts", truth(self.allow_private_hosts))
        if self.backend not in ("auto", "decord", "pyav"):
            raise ConfigError(
                f"media backend must be auto, decord or pyav, got {self.backend!r}", "backend"
            )

    def bytes_of(self, transport: Transport) -> tuple[int, str]:
        """Bytes that a video may have, and the flag that sets them."""
        field = {
            Transport.DATA: "max_bytes",
            Transport.REMOTE: "max_remote_bytes",
            Transport.LOCAL: "max_local_bytes",
        }[transport]
        return getattr(self, field), flag_of(field)

    def duration_of(self, transport: Transport) -> tuple[float, str]:
        """Seconds that a video may last, and the flag that sets them."""
        is_local = transport is Transport.LOCAL
        field = "max_local_duration_s" if is_local else "max_duration_s"
        return getattr(self, field), flag_of(field)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> MediaLimits:
        """Limits from the environment; unset names keep their defaults."""
        return from_environ(cls, ENV_PREFIX, environ)


def flag_of(field: str) -> str:
    """The flag of a limit, for messages: whoever may raise the limit finds it under that name."""
    return FLAG_PREFIX + field.replace("_", "-")
