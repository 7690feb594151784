"""What a video may cost: one frozen object, filled from `METOK_MEDIA_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

from metok_vllm.errors import ConfigError

ENV_PREFIX = "METOK_MEDIA_"


@dataclass(frozen=True)
class MediaLimits:
    """Limits for media that clients send. Every field is `METOK_MEDIA_<FIELD>` in the environment.

    Sizes are bytes, times are seconds. Raises ConfigError for a value out of range.
    """

    max_bytes: int = 64 << 20
    max_duration_s: float = 600.0
    max_videos: int = 8
    max_frames: int = 128
    default_frames: int = 32
    max_frame_pixels: int = 16_000_000
    max_decoded_bytes: int = 1 << 30
    fetch_timeout_s: float = 30.0
    decode_deadline_s: float = 30.0
    decode_workers: int = 2
    worker_memory_bytes: int = 4 << 30
    max_redirects: int = 3
    allow_private_hosts: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool | str):
                continue
            minimum = 0 if field.name == "max_redirects" else 1e-3
            if value < minimum:
                raise ConfigError(
                    f"media limit {field.name} must be positive, got {value}", field.name
                )
        if self.default_frames > self.max_frames:
            raise ConfigError(
                f"default_frames {self.default_frames} is over max_frames {self.max_frames}",
                "default_frames",
            )
        if self.backend not in ("auto", "decord", "pyav"):
            raise ConfigError(
                f"media backend must be auto, decord or pyav, got {self.backend!r}", "backend"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> MediaLimits:
        """Limits from the environment; unset names keep their defaults."""
        environ = os.environ if environ is None else environ
        values: dict[str, object] = {}
        for field in fields(cls):
            raw = environ.get(ENV_PREFIX + field.name.upper())
            if raw is None or raw == "":
                continue
            default = field.default
            try:
                if isinstance(default, bool):
                    values[field.name] = raw.strip().lower() in ("1", "true", "yes", "on")
                elif isinstance(default, int):
                    values[field.name] = int(raw)
                elif isinstance(default, float):
                    values[field.name] = float(raw)
                else:
                    values[field.name] = raw
            except ValueError:
                raise ConfigError(
                    f"{ENV_PREFIX}{field.name.upper()} must be a number, got {raw!r}", field.name
                ) from None
        return cls(**values)  # type: ignore[arg-type]
