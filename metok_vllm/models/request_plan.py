"""The plan of a request in the API server, from what its processor knows of the videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.multimodal.parse import VideoProcessorItems

from metok_vllm.config import METokConfig
from metok_vllm.config.methods import METOK
from metok_vllm.plan.focus import Focus
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan


def request_plan(
    config: METokConfig,
    source: str,
    videos: VideoProcessorItems,
    keys: Sequence[str],
    places: Sequence[Any],
    layouts: Sequence[VideoLayout],
    token_ids: Sequence[int],
    ends: Sequence[int],
) -> RequestPlan:
    """The videos of a request with their keys, places in the prompt and layouts, in order.

    `source` says where the question came from. `token_ids` are the prompt's, `ends` those that end
    a user's message.
    """
    plans = []
    for index, (key, place, video) in enumerate(zip(keys, places, layouts, strict=True)):
        times, duration = _frame_times(videos, index, video)
        plans.append(
            VideoPlan(
                key,
                video.frames,
                times,
                duration,
                video.dense_tokens(),
                place.length,
                place.offset,
                Pruning.of_video(config, video) if config.compresses else None,
            )
        )
    preset, rule = (config.preset, config.rule) if config.enabled else ("off", METOK)
    stages = config.running_stages
    focus = config.focus if stages else None
    last_visual = max(plan.start + plan.encoded_tokens for plan in plans)
    core = Focus(config.focus, ends).core_tokens(token_ids, last_visual)
    return RequestPlan(preset, stages, source, tuple(plans), rule, focus, core)


def _frame_times(
    videos: VideoProcessorItems, index: int, video: VideoLayout
) -> tuple[tuple[float, ...], float]:
    """Seconds of each frame of a layout and of the whole video; frame numbers without metadata.

    A frame of several sampled ones has the mean of their times. Where the model's processor took
    fewer frames than it was given, they are those of an even spread.
    """
    metadata: Any = videos.metadata[index] if isinstance(videos.metadata, list) else None
    if metadata is None:
        metadata = {}
    fps, sampled = float(metadata.get("fps") or 1.0), video.sampled_frames
    times = metadata.get("timestamps_s")
    if times is None:
        times = [i / fps for i in metadata.get("frames_indices") or range(video.frames * sampled)]
    count = video.frames * sampled
    if len(times) > count:
        last = (len(times) - 1) / max(count - 1, 1)
        times = [times[round(i * last)] for i in range(count)]
    groups = [times[i * sampled : (i + 1) * sampled] for i in range(video.frames)]
    means = tuple(float(sum(group) / len(group)) for group in groups if group)
    return means, float(metadata.get("duration") or video.frames * sampled / fps)
