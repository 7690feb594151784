"""METok in a model's multimodal processor, shared by the model files.

It fixes a video's token count before any pixel is processed and reads the question from the prompt.
Both become part of the video's key, so that no cache of vLLM (processor, encoder, prefix) serves
tokens that another question or setting selected. Settings of a request come in
`mm_processor_kwargs["metok"]`; images are not affected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import VideoProcessorItems
from vllm.multimodal.processing import PromptReplacement, PromptUpdate
from vllm.multimodal.processing.inputs import ProcessorInputs

from metok_vllm.alignment import encode_query, text_window
from metok_vllm.config import METokConfig
from metok_vllm.config.methods import METOK
from metok_vllm.models import request as wire
from metok_vllm.models.input_checks import check_frames, check_placeholders, check_strides
from metok_vllm.models.processor_cache import SentMediaCache
from metok_vllm.models.query import QueryFinder
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout
from metok_vllm.plan.prompt import Pruning
from metok_vllm.plan.request import RequestPlan, VideoPlan

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import ProcessorSurface
else:
    ProcessorSurface = object


@dataclass
class KeyedInputs(ProcessorInputs):
    """Processor inputs whose hashes are computed once; the videos' include METok's settings."""

    hashes: Any = None

    def get_mm_hashes(self, model_id: str, hash_algorithm: Any) -> Any:
        if self.hashes is None:
            self.hashes = super().get_mm_hashes(model_id, hash_algorithm)
        return self.hashes


class MetokProcessorMixin(ProcessorSurface):
    """Mixed in before a model's own multimodal processor. `info.metok` is the METokConfig."""

    def video_layout(self, videos: Any, index: int) -> VideoLayout:
        """The layout of one of a request's videos in the prompt."""
        return video_layout(self.info.get_hf_config(), videos.get_num_frames(index))

    @cached_property
    def query_finder(self) -> QueryFinder:
        tokenizer = self.info.get_tokenizer()
        template = getattr(self.info.get_hf_processor(), "chat_template", None)
        template = template or getattr(tokenizer, "chat_template", None)
        config = self.info.get_hf_config()
        media = (config.image_token_index, config.video_token_index)
        return QueryFinder(tokenizer, template, media)

    @cached_property
    def query_tokenizer(self) -> tuple[Any, int]:
        from transformers import AutoTokenizer

        path = self.info.metok.alignment_model
        return AutoTokenizer.from_pretrained(path), text_window(path)

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Dense dummies: memory and encoder cache must fit requests that switch METok off."""
        inputs = super().get_dummy_inputs(*args, **kwargs)
        inputs.hf_processor_mm_kwargs = {wire.OPTION: {"enabled": False}}
        return inputs

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As the base class; the request's plan is added to the result as `metok`."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        options = wire.options_of(self.info.metok, kwargs.pop(wire.OPTION, None))
        config = options.config
        inputs = replace(inputs, hf_processor_mm_kwargs=kwargs)
        if isinstance(inputs.cache, SentMediaCache):
            inputs.cache.commit()
        hf_config = self.info.get_hf_config()
        media = {"image": hf_config.image_token_index, "video": hf_config.video_token_index}
        check_placeholders(inputs, media)
        videos = inputs.mm_data_items.get("video")
        if not isinstance(videos, VideoProcessorItems):
            return super().apply(inputs, timing_ctx)
        check_frames(videos)
        for index in range(videos.get_count()):
            if videos.get(index) is not None:
                check_strides(config, self.video_layout(videos, index))

        source, query_ids = "none", torch.empty(0, 0, dtype=torch.int64)
        if config.running_stages:
            query, source = options.query, options.source
            if not query:
                query, source = self.query_finder.find(inputs.prompt)
            query_ids = self._query_ids(query)
        payload = wire.selection_payload(config, query_ids) if config.compresses else None
        keyed = KeyedInputs(**{name: getattr(inputs, name) for name in inputs.__dataclass_fields__})
        contents = self._get_mm_hashes(keyed)["video"]
        keys = [wire.video_key(content, payload) for content in contents]
        keyed.hashes = {**keyed.hashes, "video": keys}
        kwargs[wire.VIDEOS] = wire.VideoOptions(
            config, payload, tuple(zip(keys, contents, strict=True))
        )
        keyed.hf_processor_mm_kwargs = kwargs
        result = super().apply(keyed, timing_ctx)
        # A video that is given by its id alone has no frames to plan with.
        if all(video is not None for video in videos.data):
            places = result["mm_placeholders"]["video"]
            result[wire.OPTION] = self._plan(config, source, videos, keys, places)
        return result

    def _query_ids(self, query: str) -> Any:
        config = self.info.metok
        if config.alignment_model is None or config.alignment_mode == "none":
            return torch.empty(0, 0, dtype=torch.int64)
        tokenizer, window = self.query_tokenizer
        return encode_query(tokenizer, query, length=window)

    def _plan(
        self,
        config: METokConfig,
        source: str,
        videos: VideoProcessorItems,
        keys: Sequence[str],
        places: Sequence[Any],
    ) -> RequestPlan:
        plans = []
        for index, (key, place) in enumerate(zip(keys, places, strict=True)):
            video = self.video_layout(videos, index)
            frames = video.frames
            times, duration = _frame_times(videos, index, frames)
            plans.append(
                VideoPlan(
                    key,
                    frames,
                    times,
                    duration,
                    video.dense_tokens(),
                    place.length,
                    place.offset,
                    Pruning.of(config, video.key_share(config)) if config.compresses else None,
                )
            )
        preset, rule = (config.preset, config.rule) if config.enabled else ("off", METOK)
        return RequestPlan(preset, config.running_stages, source, tuple(plans), rule)

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        if wire.VIDEOS in kwargs:
            options, cached = kwargs[wire.VIDEOS], mm_is_cached["video"]
            missing = [key for key, hit in zip(options.keys, cached, strict=True) if not hit]
            kwargs[wire.VIDEOS] = replace(options, keys=tuple(missing))
        return kwargs

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        rest, options = _without_videos(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, rest)
        if "pixel_values_videos" in data:
            assert options is not None, "videos without their options"
            videos = mm_items.get_items("video", VideoProcessorItems)
            assert len(options.keys) == videos.get_count()
            data[wire.FIELD] = [
                wire.pack(
                    key,
                    options.payload,
                    self.video_layout(videos, index).key_share(options.config),
                    content,
                )
                for index, (key, content) in enumerate(options.keys)
            ]
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        rest, _ = _without_videos(hf_processor_mm_kwargs)
        fields = dict(super()._get_mm_fields_config(hf_inputs, rest))
        fields[wire.FIELD] = MultiModalFieldConfig.batched("video", keep_on_cpu=True)
        return fields

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptUpdate]:
        rest, options = _without_videos(hf_processor_mm_kwargs)
        updates: Sequence[PromptUpdate]
        updates = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)
        if options is None or options.payload is None:
            return updates
        token = self.info.get_hf_config().video_token_index

        def replacement(index: int) -> list[int]:
            videos = mm_items.get_items("video", VideoProcessorItems)
            return [token] * self.video_layout(videos, index).tokens(options.config)

        video = PromptReplacement(modality="video", target=[token], replacement=replacement)
        return [*(u for u in updates if u.modality != "video"), video]


def _without_videos(
    kwargs: Mapping[str, object],
) -> tuple[dict[str, object], wire.VideoOptions | None]:
    """The processor's options without METok's, and METok's."""
    rest = dict(kwargs)
    options: Any = rest.pop(wire.VIDEOS, None)
    return rest, options


def _frame_times(
    videos: VideoProcessorItems, index: int, frames: int
) -> tuple[tuple[float, ...], float]:
    """Seconds of each sampled frame and of the whole video; frame numbers without metadata."""
    metadata: Any = videos.metadata[index] if isinstance(videos.metadata, list) else None
    if metadata is None:
        metadata = {}
    fps = float(metadata.get("fps") or 1.0)
    times = metadata.get("timestamps_s")
    if times is None:
        times = [i / fps for i in metadata.get("frames_indices") or range(frames)]
    times = tuple(float(t) for t in times[:frames])
    return times, float(metadata.get("duration") or frames / fps)
