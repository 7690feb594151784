"""A folder of the user's own videos, again and again in ever new orders."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metok_vllm.errors import ConfigError, MediaError
from metok_vllm.video import MediaLimits, VideoProbe, probe

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
# What a server accepts is for the server to say.
LIMITS = MediaLimits(max_bytes=1 << 40, max_duration_s=1e9, max_frame_pixels=1 << 40)


@dataclass(frozen=True)
class FoundVideo:
    """A file of the folder and what is known about it."""

    data: bytes
    media_type: str
    probe: VideoProbe


class VideoFolder:
    """The videos directly in `path`, each once a round, in an order drawn for each round."""

    def __init__(self, path: Path, seed: int) -> None:
        self.seed = seed
        found = path.iterdir() if path.is_dir() else []
        self.files = sorted(file for file in found if file.suffix.lower() in SUFFIXES)
        if not self.files:
            known = ", ".join(sorted(SUFFIXES))
            raise ConfigError(f"no videos in {path} (looked for {known})", "folder")

    def video(self, number: int) -> FoundVideo:
        """Video `number` of an endless row. Raises MediaError naming a file that is no video."""
        turn, place = divmod(number, len(self.files))
        order = np.random.default_rng((self.seed, turn)).permutation(len(self.files))
        file = self.files[order[place]]
        data = file.read_bytes()
        try:
            facts = probe(data, LIMITS)
        except MediaError as error:
            raise MediaError(f"{file.name}: {error}", error.reason) from error
        media_type = mimetypes.guess_type(file.name)[0] or "video/mp4"
        return FoundVideo(data, media_type, facts)
