"""Errors that users can act on. Each is a ValueError, which vLLM answers with 400 by default.

MetokError
├── ConfigError               a setting or request field that cannot be used           400
└── MediaError                a video or image that is refused or cannot be read       422
    ├── MediaTooLargeError    over a limit of size, length, frames or pixels           413
    ├── MediaForbiddenError   an address or path that the media policy refuses         400
    ├── MediaBusyError        no decoder or memory was free in time                    429
    ├── MediaAbandonedError   the request or the server ended before the media is read 503
    └── MediaDeadlineError    fetching or decoding took too long                       504

Messages name the offending value and the limit, never a path, an address or the payload.
"""

from __future__ import annotations


class MetokError(ValueError):
    """Base of all errors that are reported to users. `status` is the HTTP status."""

    status: int = 400


class ConfigError(MetokError):
    """A setting or request field is unknown, malformed, or may not be changed here."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MediaError(MetokError):
    """Media that cannot be used. `reason` is the label of `metok_media_rejected_total`."""

    status = 422
    default_reason = "unreadable"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


class MediaTooLargeError(MediaError):
    """Media over one of the limits of `metok_vllm.video.limits.MediaLimits`."""

    status = 413
    default_reason = "too_large"


class MediaForbiddenError(MediaError):
    """A host, scheme or path that the media policy refuses."""

    status = 400
    default_reason = "forbidden"


class MediaBusyError(MediaError):
    """Other media were served first for too long; the client may try again later."""

    status = 429
    default_reason = "busy"


class MediaAbandonedError(MediaError):
    """The request or the server ended before the media was read."""

    status = 503
    default_reason = "abandoned"


class MediaDeadlineError(MediaError):
    """Fetching or decoding exceeded its deadline and was stopped."""

    status = 504
    default_reason = "deadline"
