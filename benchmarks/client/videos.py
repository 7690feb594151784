"""Videos to send: clips drawn from a seed with reproducible bytes, and a folder of the user's own.

The kind of a clip decides what METok can drop: cuts make events, a static clip has none, and the
frames of noise have nothing in common.

Shape suffixes: T frames, H height, W width, C colours.
"""

from __future__ import annotations

import io
import mimetypes
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from metok_vllm.errors import ConfigError, MediaError
from metok_vllm.video import MediaLimits, VideoProbe, probe

ClipKind = Literal["cuts", "static", "noise"]
CLIP_KINDS: tuple[ClipKind, ...] = get_args(ClipKind)
SCENES = (4, 9)  # least and excluded most scenes of a clip with cuts
PATCHES = (6, 8)  # colours of a scene, down and across
NOISE_BLOCK = 8  # pixels; finer noise makes videos of several megabytes
ENCODER = {"preset": "veryfast", "crf": "28"}


@dataclass(frozen=True)
class Clip:
    """A clip to draw: `frames` pictures of `width` x `height` at `fps`; sides are even."""

    kind: ClipKind
    seed: tuple[int, ...]
    frames: int
    fps: int
    width: int
    height: int

    @property
    def name(self) -> str:
        """A file name unique to this clip."""
        seed = "-".join(map(str, self.seed))
        return f"{self.kind}-{seed}-{self.frames}x{self.fps}-{self.width}x{self.height}.mp4"


def video_bytes(clip: Clip) -> bytes:
    """The clip as H.264 in an mp4. Drawn once a process, later read from disk."""
    path = _folder() / clip.name
    if not path.exists():
        path.write_bytes(encode(clip))
    return path.read_bytes()


def encode(clip: Clip) -> bytes:
    """The clip as H.264 in an mp4."""
    return encode_mp4(pictures(clip), clip.fps, clip.width, clip.height, ENCODER)


def pictures(clip: Clip) -> Iterator[Picture]:
    """The frames, uint8 [H, W, C] each."""
    rng = np.random.default_rng(clip.seed)
    if clip.kind == "noise":
        for _ in range(clip.frames):
            yield _noise(rng, clip.width, clip.height)
        return
    if clip.kind == "static":
        still_HWC = scene(rng, clip.width, clip.height)
        for _ in range(clip.frames):
            yield still_HWC
        return
    cuts = scene_cuts(rng, clip.frames)
    for start, end in zip([0, *cuts], [*cuts, clip.frames], strict=True):
        # A camera pan over a wider picture, so that frames of a scene are similar.
        wide_HWC = scene(rng, 2 * clip.width, clip.height)
        speed = 2 * clip.width / clip.frames * rng.uniform(0.2, 1.0)
        for number in range(end - start):
            left = min(int(number * speed), clip.width)
            yield np.ascontiguousarray(wide_HWC[:, left : left + clip.width])


def scene_cuts(rng: np.random.Generator, frames: int) -> list[int]:
    """The first frame of every scene but the first; lengths differ by a factor below three."""
    lengths = rng.uniform(1, 3, rng.integers(*SCENES))
    ends = (lengths.cumsum() / lengths.sum() * frames).astype(int)[:-1].tolist()
    return sorted(set(ends) - {0})


def scene(rng: np.random.Generator, width: int, height: int) -> Picture:
    """A picture [H, W, C] of soft patches in random colours."""
    colours = rng.integers(0, 256, (*PATCHES, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def jpeg_bytes(seed: tuple[int, ...], width: int, height: int) -> bytes:
    """A picture of soft patches as JPEG."""
    file = io.BytesIO()
    picture_HWC = scene(np.random.default_rng(seed), width, height)
    Image.fromarray(picture_HWC).save(file, "jpeg", quality=90)
    return file.getvalue()


def _noise(rng: np.random.Generator, width: int, height: int) -> Picture:
    across, down = -(-width // NOISE_BLOCK), -(-height // NOISE_BLOCK)
    blocks = rng.integers(0, 256, (down, across, 3), dtype=np.uint8)
    whole_HWC = blocks.repeat(NOISE_BLOCK, axis=0).repeat(NOISE_BLOCK, axis=1)
    return np.ascontiguousarray(whole_HWC[:height, :width])


def _folder() -> Path:
    return Path(_temporary().name)


@lru_cache(maxsize=1)
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A folder that is deleted when the process ends."""
    return tempfile.TemporaryDirectory(prefix="metok-bench-")


Picture = npt.NDArray[np.uint8]
# One thread and no B-frames give the same bytes on any number of cores. With AVX-512, x264's
# macroblock tree sometimes gives different bytes for the same pictures: on a busy machine one time
# in ten. SSE4.2 is reproducible on one processor type.
STEADY = {"bf": "0", "threads": "1", "x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE4.2"}


def encode_mp4(
    pictures: Iterable[Picture], fps: int, width: int, height: int, options: Mapping[str, str]
) -> bytes:
    """Encode pictures uint8 [H, W, C] of even sides, one a frame, with libx264's `options`."""
    with tempfile.TemporaryDirectory(prefix="metok-mp4-") as folder:
        path = Path(folder) / "video.mp4"
        _write(path, pictures, fps, (width, height), {**STEADY, **options})
        return path.read_bytes()


def _write(
    path: Path,
    pictures: Iterable[Picture],
    fps: int,
    size: tuple[int, int],
    options: Mapping[str, str],
) -> None:
    # The index comes first, so that a browser can play a partial file.
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=fps, options=dict(options))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for number, picture_HWC in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture_HWC, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
# The server enforces its own limits; these only have to let every video pass.
LIMITS = MediaLimits(max_bytes=1 << 40, max_duration_s=1e9, max_frame_pixels=1 << 40)


@dataclass(frozen=True)
class FoundVideo:
    """A file of the folder with its media type and probe."""

    data: bytes
    media_type: str
    probe: VideoProbe


class VideoFolder:
    """The videos directly in `path`, each once a round, in a new random order every round.

    Raises ConfigError for a folder without videos.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.seed = seed
        found = path.iterdir() if path.is_dir() else []
        self.files = sorted(file for file in found if file.suffix.lower() in SUFFIXES)
        if not self.files:
            known = ", ".join(sorted(SUFFIXES))
            raise ConfigError(f"no videos in {path} (looked for {known})", "folder")

    def video(self, number: int) -> FoundVideo:
        """Video `number` of the endless sequence. Raises MediaError with the file's name."""
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
