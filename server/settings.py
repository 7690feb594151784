"""Settings of the HTTP server: one frozen object, filled from `METOK_SERVER_*` variables.

Every API server process inherits the environment, so all have the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from metok_vllm.config.environment import from_environ, setting
from metok_vllm.errors import ConfigError
from metok_vllm.video.limits import MediaLimits

ENV_PREFIX = "METOK_SERVER_"
JSON_ALLOWANCE = 1 << 20  # bytes of a body besides its videos


@dataclass(frozen=True)
class ServerSettings:
    """Limits of the HTTP server (0 means no limit), and what its clients may ask for.

    Raises ConfigError for a value out of range.
    """

    max_inflight: int = setting(
        256, "requests in flight, at most 7 in 8 of them by one client; more get 429 (0: no limit)"
    )
    request_timeout_s: float = setting(600.0, "seconds until a request ends with 504 (0: no limit)")
    max_body_bytes: int = setting(
        -1, "bytes of a request body; more get 413 (0: no limit, -1: derived from the media limits)"
    )
    max_text_bytes: int = setting(
        4 << 20, "bytes of a JSON body without its base64 media; more get 413 (0: no limit)"
    )
    max_inflight_body_bytes: int = setting(
        2 << 30, "bytes of all request bodies in memory; more get 503 (0: no limit)"
    )
    header_timeout_s: float = setting(
        15.0, "seconds in which request headers must arrive, else 408 (0: no limit)"
    )
    body_timeout_s: float = setting(
        30.0, "seconds in which a request body must arrive, else 408 (0: no limit)"
    )
    write_timeout_s: float = setting(
        30.0, "seconds without reading after which a client is disconnected (0: no limit)"
    )
    metrics_without_key: bool = setting(True, "whether /metrics answers without the API key")
    aliases: bool = setting(
        True,
        "whether chat completions take the model name NAME:max as NAME with the preset max, ...",
    )
    image_runs_as_video: int = setting(
        0, "chat completions read this many or more images in a row as one video; 0: never"
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            minimum = -1 if field.name == "max_body_bytes" else 0
            value = getattr(self, field.name)
            if not minimum <= value < float("inf"):
                raise ConfigError(
                    f"{field.name} must be {minimum} or more, got {value}", field.name
                )
        if self.image_runs_as_video == 1:
            raise ConfigError(
                "image_runs_as_video must be 0 or at least 2, got 1", "image_runs_as_video"
            )

    def body_limit(self, limits: MediaLimits) -> int:
        """Bytes of the largest request body; by default the most videos of a request in base64."""
        if self.max_body_bytes >= 0:
            return self.max_body_bytes
        return limits.max_videos * base64_size(limits.max_bytes) + JSON_ALLOWANCE

    def inflight_body_limit(self, limits: MediaLimits) -> int:
        """Bytes of all bodies in memory, at least one of the largest size. 0: no limit."""
        largest = self.body_limit(limits)
        if not self.max_inflight_body_bytes or not largest:
            return 0
        return max(self.max_inflight_body_bytes, largest)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ServerSettings:
        """Settings from the environment; unset names keep their defaults."""
        return from_environ(cls, ENV_PREFIX, environ)


def base64_size(size: int) -> int:
    """Characters of `size` bytes in base64."""
    return -(-size // 3) * 4
