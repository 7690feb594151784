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
from vllm.multimodal.processing.processor import PromptUpdateDetails

from metok_vllm.alignment import encode_query, text_window
from metok_vllm.config import METokConfig
from metok_vllm.models import request as wire
from metok_vllm.models.input_checks import (
    check_frames,
    check_placeholders,
    check_reduction,
    check_strides,
)
from metok_vllm.models.layout_cache import LayoutCache
from metok_vllm.models.processor_cache import SentMediaCache
from metok_vllm.models.query import QueryFinder
from metok_vllm.models.request_plan import request_plan
from metok_vllm.plan.families import video_layout
from metok_vllm.plan.layout import VideoLayout

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import InfoSurface, ProcessorSurface
else:
    InfoSurface = ProcessorSurface = object


@dataclass
class KeyedInputs(ProcessorInputs):
    """Processor inputs whose keys in vLLM's caches are given: the videos' with METok's settings."""

    keys: Any = None


class MetokInfoMixin(InfoSurface):
    """Mixed in before a model's own processing info: METok's settings, and none of its own."""

    @cached_property
    def metok(self) -> METokConfig:
        return METokConfig.from_dict(self.get_hf_config().metok)


class MetokProcessorMixin(ProcessorSurface):
    """Mixed in before a model's own multimodal processor. `info.metok` is the METokConfig."""

    # What a model file may override.

    @property
    def least_frames(self) -> int:
        """Sampled frames without which the model's own processor fails."""
        return 1

    def media_tokens(self) -> dict[str, int]:
        """The placeholder's token id by modality."""
        config = self.info.get_hf_config()
        return {"image": config.image_token_index, "video": config.video_token_index}

    def framing_tokens(self) -> tuple[int, ...]:
        """Token ids that the template puts around media; they are no part of a question."""
        return ()

    def video_layout(
        self, videos: VideoProcessorItems, index: int, processed: Any
    ) -> VideoLayout | None:
        """The layout of one of a request's videos in the prompt.

        `processed` is what the model's own processor made of the videos; where it is None, as on a
        hit of vLLM's processor cache, a layout that depends on it is not known.
        """
        return video_layout(self.info.get_hf_config(), videos.get_num_frames(index))

    def check_settings(self, config: METokConfig) -> None:
        """Raise VLLMValidationError for settings that this model's videos cannot have."""
        layout = video_layout(self.info.get_hf_config())
        check_strides(config, layout)
        check_reduction(config, layout)

    def check_positions(self, layouts: Sequence[VideoLayout], tokens: Sequence[int]) -> None:
        """Raise VLLMValidationError where rotary positions would exceed those that the model has.

        `tokens` are those of each video with METok in the prompt.
        """

    # What this file adds.

    @cached_property
    def layouts(self) -> LayoutCache:
        return LayoutCache()

    @cached_property
    def query_finder(self) -> QueryFinder:
        tokenizer = self.info.get_tokenizer()
        template = getattr(self.info.get_hf_processor(), "chat_template", None)
        template = template or getattr(tokenizer, "chat_template", None)
        of_media = self.media_tokens()
        media = (*of_media.values(), *self.framing_tokens())
        return QueryFinder(tokenizer, template, media, of_media["video"])

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
        check_placeholders(inputs, self.media_tokens())
        videos = inputs.mm_data_items.get("video")
        if not isinstance(videos, VideoProcessorItems) or not videos.get_count():
            return super().apply(inputs, timing_ctx)
        check_frames(videos, self.least_frames)
        self.check_settings(config)

        source, query_ids = "none", torch.empty(0, 0, dtype=torch.int64)
        if config.running_stages:
            query, source = options.question(self.query_finder, inputs.prompt)
            query_ids = self._query_ids(query)
        payload = wire.selection_payload(config, query_ids) if config.compresses else None
        keyed = KeyedInputs(**{name: getattr(inputs, name) for name in inputs.__dataclass_fields__})
        hashes = self._get_mm_hashes(keyed)
        contents = hashes["video"]
        keys = [wire.video_key(content, payload) for content in contents]
        keyed.keys = {**hashes, "video": keys}
        kwargs[wire.VIDEOS] = wire.VideoOptions(
            config, payload, tuple(zip(keys, contents, strict=True))
        )
        keyed.hf_processor_mm_kwargs = kwargs
        result = super().apply(keyed, timing_ctx)
        # A video that is given by its id alone has no times to plan with.
        if any(video is None for video in videos.data):
            return result
        known = [
            self.layouts.get(key) or self.video_layout(videos, index, None)
            for index, key in enumerate(keys)
        ]
        layouts = [video for video in known if video is not None]
        if len(layouts) == len(known):
            places = result["mm_placeholders"]["video"]
            token_ids, ends = result["prompt_token_ids"], self.query_finder.end_ids
            result[wire.OPTION] = request_plan(
                config, source, videos, keys, places, layouts, token_ids, ends
            )
            if config.compresses:
                self.check_positions(layouts, [place.length for place in places])
        return result

    def _get_mm_hashes(self, inputs: Any) -> Any:
        given = inputs.keys if isinstance(inputs, KeyedInputs) else None
        return super()._get_mm_hashes(inputs) if given is None else given

    def _query_ids(self, query: str) -> Any:
        config = self.info.metok
        if config.alignment_model is None or config.alignment_mode == "none":
            return torch.empty(0, 0, dtype=torch.int64)
        tokenizer, window = self.query_tokenizer
        return encode_query(tokenizer, query, length=window)

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Any:
        rest, options = _without_videos(inputs.hf_processor_mm_kwargs)
        of_model = replace(inputs, hf_processor_mm_kwargs=rest)
        kwargs = dict(super()._get_cache_missing_processor_kwargs(of_model, mm_is_cached))
        if options is not None:
            cached = mm_is_cached["video"]
            missing = [key for key, hit in zip(options.keys, cached, strict=True) if not hit]
            kwargs[wire.VIDEOS] = replace(options, keys=tuple(missing))
        return kwargs

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        rest, options = _without_videos(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, rest)
        if "pixel_values_videos" in data:
            assert options is not None, "videos without their options"
            videos = mm_items.get_items("video", VideoProcessorItems)
            fields = []
            for index, (key, content) in enumerate(options.keys):
                video = self.video_layout(videos, index, data)
                assert video is not None
                self.layouts.put(key, video)
                share = video.key_share(options.config)
                ends = self.query_finder.end_ids if options.payload is not None else ()
                fields.append(wire.pack(key, options.payload, share, content, video, ends))
            data[wire.FIELD] = fields
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
        token = self.media_tokens()["video"]

        def replacement(index: int) -> PromptUpdateDetails[list[int]]:
            key, _ = options.keys[index]
            video = self.layouts.get(key)
            assert video is not None
            return PromptUpdateDetails.from_seq(video.prompt_ids(options.config, token))

        video = PromptReplacement(modality="video", target=[token], replacement=replacement)
        return [*(u for u in updates if u.modality != "video"), video]


def _without_videos(
    kwargs: Mapping[str, object],
) -> tuple[dict[str, object], wire.VideoOptions | None]:
    """The processor's options without METok's, and METok's."""
    rest = dict(kwargs)
    options: Any = rest.pop(wire.VIDEOS, None)
    return rest, options
