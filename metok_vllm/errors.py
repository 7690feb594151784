"""Errors a user can act on. Each is a ValueError, so vLLM answers 400 where nobody maps it.

MetokError
├── ConfigError        a setting or a request field that cannot be used      400
└── MediaError         a video or image that was refused or cannot be read   422
    ├── MediaTooLarge      over a limit of size, length, frames or pixels    413
    ├── MediaForbidden     an address or path that policy does not allow     400
    ├── MediaBusy          others are served first, for too long             429
    ├── MediaAbandoned     the request or the server ends before it is read  503
    └── MediaDeadline      fetching or decoding took too long                504

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

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class MediaTooLarge(MediaError):  # noqa: N818 - reads as a sentence in `except MediaTooLarge`
    """Media over one of the limits of `metok_vllm.video.limits.MediaLimits`."""

    status = 413

    def __init__(self, message: str, reason: str = "too_large") -> None:
        super().__init__(message, reason)


class MediaForbidden(MediaError):  # noqa: N818
    """A host, scheme or path that the media policy refuses."""

    status = 400

    def __init__(self, message: str, reason: str = "forbidden") -> None:
        super().__init__(message, reason)


class MediaBusy(MediaError):  # noqa: N818
    """The server has other media to read first; the client may try again later."""

    status = 429

    def __init__(self, message: str, reason: str = "busy") -> None:
        super().__init__(message, reason)


class MediaAbandoned(MediaError):  # noqa: N818
    """Nobody waits for the media any more, or the server ends: the work was stopped."""

    status = 503

    def __init__(self, message: str, reason: str = "abandoned") -> None:
        super().__init__(message, reason)


class MediaDeadline(MediaError):  # noqa: N818
    """Fetching or decoding did not end in time; the work was killed."""

    status = 504

    def __init__(self, message: str, reason: str = "deadline") -> None:
        super().__init__(message, reason)
