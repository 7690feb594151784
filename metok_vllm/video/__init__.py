"""Reading videos that clients send: probe, refuse what is over the limits, sample, decode.

Decoding runs in helper processes that are killed at their deadline. No torch and no vLLM here.
"""

from metok_vllm.video.frames import VideoFrames
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.probing import VideoProbe, probe
from metok_vllm.video.reading import read_video
from metok_vllm.video.sampling import sample_indices

__all__ = [
    "MediaLimits",
    "VideoFrames",
    "VideoProbe",
    "probe",
    "read_video",
    "sample_indices",
]
