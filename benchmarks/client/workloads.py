"""Endless streams of requests, reproducible from their settings.

Every video, picture and text is new, so that a server's caches help only further questions about
one video (`questions_per_video`, `turns`, `reuse_share`). Drawing takes time: draw a run's requests
before its clock starts, and never send one twice to a server.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metok_vllm.benchmarks.client.endpoint import BenchRequest, Kind
from metok_vllm.benchmarks.client.sharing import Ask, in_rotation, with_reuse
from metok_vllm.benchmarks.client.videos import (
    CLIP_KINDS,
    Clip,
    ClipKind,
    VideoFolder,
    jpeg_bytes,
    video_bytes,
)
from metok_vllm.errors import ConfigError

QUESTIONS = (
    "What happens first, and what happens after it?",
    "Where does this take place?",
    "How many different scenes are there?",
    "Which colours are seen in the middle of the video?",
    "What moves, and in which direction does it move?",
    "What is the last thing that is shown?",
    "When does the picture change the most?",
    "What is different between the beginning and the end?",
)
IMAGE_QUESTION = "What is in this picture, and which colours does it have?"
WORDS = (
    "river house garden morning letter answer window water people story picture road evening "
    "table number winter music village field summer ship paper bread stone forest market"
)
# Independent streams of random numbers.
MIX, VIDEO, TEXT, IMAGE = range(4)


@dataclass(frozen=True)
class WorkloadSettings:
    """Settings of the requests. Raises ConfigError with the invalid field and value.

    Every video draws its kind from `clips` and its sampled frames from `frames`, uniformly; a frame
    stands for `seconds_per_frame` of video. Questions rotate over `videos_in_turn` videos, so that
    the second question about a video comes that many video requests after its first. In their
    place, `reuse_share` and `reuse_pool` are those of `with_reuse`. A video request begins a
    conversation of `turns` questions. `text_share` and `image_share` are shares of the requests.
    Videos of `folder` replace drawn clips.
    """

    seed: int = 0
    clips: tuple[ClipKind, ...] = ("cuts",)
    folder: Path | None = None
    frames: tuple[int, ...] = (64,)
    questions_per_video: int = 1
    videos_in_turn: int = 1
    turns: int = 1
    reuse_share: float = 0.0
    reuse_pool: int = 4
    text_share: float = 0.0
    image_share: float = 0.0
    max_tokens: int = 32
    width: int = 320
    height: int = 240
    video_fps: int = 4
    seconds_per_frame: float = 1.0
    text_words: int = 64

    def __post_init__(self) -> None:
        positive = ("questions_per_video", "videos_in_turn", "turns", "reuse_pool", "max_tokens")
        for name in (*positive, "video_fps", "text_words"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        for name in ("width", "height"):
            _at_least(name, getattr(self, name), 16)
            if getattr(self, name) % 2:
                raise ConfigError(f"{name} must be even, got {getattr(self, name)}", name)
        if not self.frames:
            raise ConfigError("frames must name at least one number of frames", "frames")
        for frames in self.frames:
            _at_least("frames", frames, 1)
        if not self.clips or not set(self.clips) <= set(CLIP_KINDS):
            kinds = ", ".join(CLIP_KINDS)
            raise ConfigError(f"clips must be of {kinds}; got {list(self.clips)}", "clips")
        if not 1 / self.video_fps <= self.seconds_per_frame:
            raise ConfigError(
                f"seconds_per_frame must be at least one frame of the video "
                f"({1 / self.video_fps:g}), got {self.seconds_per_frame}",
                "seconds_per_frame",
            )
        shares = (self.text_share, self.image_share)
        if min(shares) < 0 or not sum(shares) <= 1:
            raise ConfigError(f"text_share and image_share must be 0 to 1 together, got {shares}")
        if not 0 <= self.reuse_share < 1:
            raise ConfigError(f"reuse_share must be 0 to below 1, got {self.reuse_share}")
        if self.reuse_share and max(self.questions_per_video, self.videos_in_turn) > 1:
            raise ConfigError("reuse_share replaces questions_per_video and videos_in_turn")


class _Video(NamedTuple):
    part: dict[str, Any]
    frames: int
    seconds: float
    order: tuple[int, ...]

    def question(self, number: int) -> str:
        """The text of a question. With more questions than texts, they repeat in other words."""
        repeats, place = divmod(number, len(self.order))
        return QUESTIONS[self.order[place]] + " Look again." * repeats


def workload(settings: WorkloadSettings) -> Iterator[BenchRequest]:
    """An endless stream; request i depends only on the settings and i.

    Raises ConfigError for a folder without videos, MediaError for a file that is not a video.
    """
    folder = VideoFolder(settings.folder, settings.seed) if settings.folder else None
    numbers: dict[Kind, Iterator[int]] = {kind: count() for kind in ("video", "image", "text")}
    asks = _asks(settings)
    known: dict[int, _Video] = {}
    for index in count():
        kind = _kind(settings, index)
        number = next(numbers[kind])
        if kind == "text":
            yield _request(settings, f"text{number}", kind, _text(settings, number))
            continue
        if kind == "image":
            yield _request(settings, f"image{number}", kind, _image(settings, number))
            continue
        ask = next(asks)
        video = known.pop(ask.video, None) or _video(settings, folder, ask.video)
        if not ask.last:
            known[ask.video] = video
        yield _about(settings, ask, video)


def _asks(settings: WorkloadSettings) -> Iterator[Ask]:
    if settings.reuse_share:
        return with_reuse(settings.reuse_share, settings.reuse_pool)
    return in_rotation(settings.questions_per_video, settings.videos_in_turn)


def _about(settings: WorkloadSettings, ask: Ask, video: _Video) -> BenchRequest:
    """A conversation about a video; no earlier one about it had the same questions."""
    begin = ask.question * settings.turns
    first, *later = (video.question(begin + turn) for turn in range(settings.turns))
    content = [video.part, _text_part(first)]
    name = f"video{ask.video}-question{ask.question}"
    request = _request(settings, name, "video", content, video.frames, video.seconds, ask.question)
    return replace(request, later=tuple(later))


def _kind(settings: WorkloadSettings, index: int) -> Kind:
    drawn = _rng(settings, MIX, index).random()
    if drawn < settings.text_share:
        return "text"
    return "image" if drawn < settings.text_share + settings.image_share else "video"


def _request(
    settings: WorkloadSettings,
    name: str,
    kind: Kind,
    content: list[dict[str, Any]],
    frames: int = 0,
    seconds: float = 0.0,
    question: int = 0,
) -> BenchRequest:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    if kind == "video":
        body["media_io_kwargs"] = {"video": {"num_frames": frames}}
    return BenchRequest(f"{_identity(settings)}-{name}", kind, body, frames, seconds, question)


def _video(settings: WorkloadSettings, folder: VideoFolder | None, number: int) -> _Video:
    rng = _rng(settings, VIDEO, number)
    frames = int(rng.choice(settings.frames))
    order = tuple(int(place) for place in rng.permutation(len(QUESTIONS)))
    if folder is not None:
        found = folder.video(number)
        part = _media_part("video", found.media_type, found.data) | {
            # vLLM's caches use this id in place of the content, which repeats.
            "uuid": f"metok-bench-{_identity(settings)}-{number}"
        }
        frames = min(frames, found.probe.num_frames)
        return _Video(part, frames, found.probe.duration_s, order)
    kind = settings.clips[int(rng.integers(len(settings.clips)))]
    length = round(frames * settings.seconds_per_frame * settings.video_fps)
    seed = (*_seed(settings), VIDEO, number)
    clip = Clip(kind, seed, length, settings.video_fps, settings.width, settings.height)
    part = _media_part("video", "video/mp4", video_bytes(clip))
    return _Video(part, frames, length / settings.video_fps, order)


def _image(settings: WorkloadSettings, number: int) -> list[dict[str, Any]]:
    seed = (*_seed(settings), IMAGE, number)
    picture = jpeg_bytes(seed, settings.width, settings.height)
    return [_media_part("image", "image/jpeg", picture), _text_part(IMAGE_QUESTION)]


def _text(settings: WorkloadSettings, number: int) -> list[dict[str, Any]]:
    words = _rng(settings, TEXT, number).choice(WORDS.split(), settings.text_words)
    return [_text_part(" ".join(words))]


def _media_part(kind: str, media_type: str, data: bytes) -> dict[str, Any]:
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _rng(settings: WorkloadSettings, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng((*_seed(settings), stream, number))


def _seed(settings: WorkloadSettings) -> tuple[int, ...]:
    # Workloads of a sweep differ in their frames, so no picture or text of one repeats in another.
    return (settings.seed, *settings.frames)


def _identity(settings: WorkloadSettings) -> str:
    return "-".join(map(str, _seed(settings)))


def _at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ConfigError(f"{name} must be {minimum} or more, got {value}", name)
