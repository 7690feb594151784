"""Frames through decord, for the files that it reads exactly.

decord 0.6 counts packets and seeks by keyframe, which is right only for files that are regular
in the sense of FrameIndex. Compared with a full decode, it returns wrong frames after a seek in
open-GOP, AVI and MPEG-TS files, and miscounts frames under an edit list. Such files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import decord

from metok_vllm.errors import MediaError
from metok_vllm.video.frames import Frame, orientation_of
from metok_vllm.video.probing import VideoSource
from metok_vllm.video.walking import shown_first

decord.logging.set_level(decord.logging.QUIET)

# Codecs with bit-exact decoding and one frame a packet. For others, decord's FFmpeg of 2018 rounds
# some pixels differently (mpeg4), or its packets and frames do not match.
CODECS = ("h264", "hevc", "vp9")
# Decoded frames held at once inside decord.
BATCH_BYTES = 64 << 20
# Frames that are compared with the index first.
PROOF_FRAMES = 4


class DecordReader:
    """VideoReader on decord."""

    def __init__(self, source: VideoSource) -> None:
        reason = _not_exact(source)
        if reason is not None:
            raise MediaError(f"decord does not read {reason} exactly", "decode_failed")
        source.file.seek(0)
        try:
            self._reader = decord.VideoReader(source.file, num_threads=source.threads)
        except (decord.DECORDError, RuntimeError):
            raise MediaError("decord cannot open the video", "decode_failed") from None
        if len(self._reader) != source.index.total:
            raise MediaError(
                f"decord counts {len(self._reader)} frames of {source.index.total}",
                "decode_failed",
            )
        frame_bytes = source.probe.width * source.probe.height * 3
        self._batch = max(1, BATCH_BYTES // frame_bytes)

    def frames(self, indices: Sequence[int]) -> Iterator[tuple[int, Frame]]:
        """See VideoReader.frames. All or nothing: raises MediaError on a damaged frame."""
        for start in range(0, len(indices), self._batch):
            chunk = list(indices[start : start + self._batch])
            try:
                frames_THWC = self._reader.get_batch(chunk).asnumpy()
            except (decord.DECORDError, RuntimeError):
                raise MediaError("the video cannot be decoded", "decode_failed") from None
            yield from zip(chunk, frames_THWC, strict=True)


def _not_exact(source: VideoSource) -> str | None:
    """Why decord would not give the right frames of this video; None if it would."""
    source.file.seek(0)
    head = source.file.read(8)
    # decord cannot restrict its demuxers, so only files with a known signature reach it.
    if head[4:] != b"ftyp" and head[:4] != b"\x1a\x45\xdf\xa3":
        return "containers other than mp4 and matroska"
    if source.probe.codec not in CODECS:
        return f"{source.probe.codec} videos"
    if not source.index.regular:
        return "videos with open GOPs, edit lists or repeated times"
    if source.bits_per_component != 8:
        return f"{source.bits_per_component} bit colour"
    numbers, first = shown_first(source, PROOF_FRAMES)
    if list(numbers) != list(source.index.sources[: len(numbers)]):
        return "videos whose packets are no frames"
    if first is not None and orientation_of(first).is_mirror:
        return "mirrored videos"
    return None
