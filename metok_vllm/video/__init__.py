"""Reading videos that clients send: probe, refuse what is over the limits, sample, decode.

Decoding runs in worker processes that are killed at their deadline. No torch and no vLLM here.
"""

from metok_vllm.video.frames import VideoFrames, sample_indices
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.probing import VideoProbe, probe
from metok_vllm.video.reading import read_video

__all__ = [
    "MediaLimits",
    "VideoFrames",
    "VideoProbe",
    "probe",
    "read_video",
    "sample_indices",
]
