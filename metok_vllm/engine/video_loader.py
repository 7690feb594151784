"""METok's video reader as a vLLM video loader, under the name `metok`.

Selected with `VLLM_VIDEO_LOADER_BACKEND=metok` or `--media-io-kwargs '{"video":
{"video_backend": "metok"}}'`; `metok serve` does so by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

if TYPE_CHECKING:
    from metok_vllm.video.video_file import VideoFile

NAME = "metok"


class MetokVideoLoader(VideoLoader):
    """Probes and decodes a video within limits, in a process that can be killed."""

    @classmethod
    def load_bytes(cls, data: bytes | VideoFile, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Frames uint8 [T, H, W, 3] and vLLM's metadata, frame times in seconds added.

        vLLM passes bytes; our media connector also passes open files.
        Raises MediaError and its kinds for what cannot or may not be read.
        """
        from metok_vllm.metrics import observe_video_read
        from metok_vllm.video import read_video
        from metok_vllm.video.requester import current

        video = read_video(data, num_frames=kwargs.get("num_frames", -1), fps=kwargs.get("fps", -1))
        observe_video_read(video.decode_s, video.cached)
        metadata: dict[str, Any] = {
            "total_num_frames": video.total_frames,
            "fps": video.fps,
            "duration": video.duration_s,
            "video_backend": video.backend,
            "frames_indices": list(video.indices),
            "do_sample_frames": False,
            "timestamps_s": list(video.timestamps_s),
        }
        if current().tenant:
            # vLLM hashes the metadata, so that its caches keep the videos of tenants apart.
            metadata["tenant"] = current().tenant
        return video.frames_THWC, metadata


def register() -> None:
    """Register the loader with vLLM under its name."""
    VIDEO_LOADER_REGISTRY.register(NAME)(MetokVideoLoader)
