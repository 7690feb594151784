"""The checks of `metok doctor` that decode the embedded video."""

from __future__ import annotations

import tempfile
from typing import Any

from metok_vllm.server.commands.doctor_checks import BROKEN, CheckError, version_of


def decoder(backend: str) -> str:
    """Decode 4 frames of the embedded video with `decord` or `pyav`."""
    package = {"pyav": "av"}.get(backend, backend)
    fix = f"pip install {package}"
    version = version_of(package, fix)
    from metok_vllm.demo import SAMPLE_VIDEO
    from metok_vllm.errors import MediaError
    from metok_vllm.video import MediaLimits, read_video

    data, limits = SAMPLE_VIDEO.read_bytes(), MediaLimits(backend=backend)
    try:
        video: Any = read_video(data, 4, limits=limits)
    except MediaError as error:
        detail = f"{version} cannot decode the sample video: {decoding_error(data, limits, error)}"
        raise CheckError(
            BROKEN, detail, f"pip install --upgrade --force-reinstall {package}"
        ) from error
    frames_THWC = video.frames_THWC
    if frames_THWC.shape[0] != 4 or not frames_THWC.any():
        raise CheckError(BROKEN, f"{version} decoded nothing from the sample video", fix)
    height, width = frames_THWC.shape[1:3]
    return f"{version}, 4 frames of {width}x{height} in {video.decode_s:.2f} s"


def decoding_error(data: bytes, limits: Any, reported: Exception) -> str:
    """Why a video cannot be decoded, from decoding it in this process.

    A decoder process reports unexpected errors, such as a missing attribute, only in its log.
    """
    from metok_vllm.video.decoding import decode

    with tempfile.TemporaryFile() as video, tempfile.TemporaryFile() as output:
        video.write(data)
        try:
            decode(video, 4, -1, limits, output)
        except Exception as error:  # a broken package can raise anything
            return f"{type(error).__name__}: {error}"
    return f"{type(reported).__name__}: {reported}"
