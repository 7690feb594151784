"""Which backend reads a given video."""

from __future__ import annotations

from importlib.util import find_spec

from metok_vllm.errors import MediaError
from metok_vllm.video.pyav_reader import PyAvReader
from metok_vllm.video.reader import VideoReader


def reader_types(backend: str) -> list[tuple[str, type[VideoReader]]]:
    """(name, reader) in the order to try them; `backend` as in MediaLimits.backend."""
    readers: list[tuple[str, type[VideoReader]]] = []
    if backend != "pyav":
        if find_spec("decord") is not None:
            from metok_vllm.video.decord_reader import DecordReader

            readers.append(("decord", DecordReader))
        elif backend == "decord":
            raise MediaError("the decord backend is not installed", "decode_failed")
    if backend != "decord":
        readers.append(("pyav", PyAvReader))
    return readers
