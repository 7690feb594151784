"""METok in a video model, shared by the model files: encoder, decoder in stages, and the splitting
of videos with METok from dense ones.

A model file mixes this in before vLLM's own model class and adds what is particular to its family:
how pixels become features, and what stands between frames.

Shape suffixes: T frames, P patches, C channels, H height, W width, D features, S separators,
N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.logger import init_logger

from metok_vllm.alignment import AlignmentTowers, Normalisation
from metok_vllm.config import METokConfig
from metok_vllm.models import request as wire
from metok_vllm.models.cache_writer import StagedInput
from metok_vllm.models.positions import VideoPositions
from metok_vllm.models.stage1 import Stage1Encoder
from metok_vllm.models.staged_decoder import StagedDecoder
from metok_vllm.models.video_features import Resize, See
from metok_vllm.plan.layers import StageLayout
from metok_vllm.plan.layout import VideoLayout

if TYPE_CHECKING:
    from metok_vllm.vllm_contract.surfaces import ModelSurface
else:
    ModelSurface = object

logger = init_logger("vllm.metok")


@dataclass(frozen=True)
class EncoderVideo:
    """A video in a batch of the encoder. `pixels` has its frames first; `fields` are what else the
    model's processor made of it."""

    pixels: Tensor
    fields: Mapping[str, Any] = field(default_factory=dict)


class MetokModel(ModelSurface):
    """Mixed in before a video model of vLLM whose decoder is `language_model.model`."""

    # The keyword of `embed_multimodal` with the pixels of each video.
    pixels_field = "pixel_values_videos"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.model_config = vllm_config.model_config
        self.metok = METokConfig.from_dict(self.config.metok)
        self.encoder_cache_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        self._stage1: Stage1Encoder | None = None

    # What a model file provides.

    def see(self, pixels: Tensor, video: VideoLayout) -> Tensor:
        """Patch features [T, P, vision width] of frames of a video."""
        raise NotImplementedError

    def project(self, features_TPD: Tensor) -> Tensor:
        """Patch features as the decoder's input [T, P, D]."""
        raise NotImplementedError

    def newline(self) -> Tensor | None:
        """The embedding [D] that closes rows, events or videos; None if the family has none."""
        raise NotImplementedError

    def vision_weight(self) -> Tensor:
        """Any parameter with the device and dtype of the vision part."""
        raise NotImplementedError

    def video_normalisation(self) -> Normalisation:
        """The statistics and size of the pictures that `picture` returns."""
        raise NotImplementedError

    # What a model file may override.

    event_width: int | None = None  # leading features in which events are found; None: all
    picture: See | None = None  # pictures [T, C, H, W] of the pixels; None: they are pictures
    resize: Resize | None = None  # pixels in another layout's grid; None: the tower has one size

    def encoder_videos(self, fields: Mapping[str, Any]) -> list[EncoderVideo]:
        """The videos of a batch, from the keywords of `embed_multimodal`."""
        return [EncoderVideo(pixels) for pixels in fields[self.pixels_field]]

    def embed_dense(self, videos: Sequence[EncoderVideo]) -> Sequence[Tensor]:
        """The model's own encoder output of some of these videos."""
        embedded: Sequence[Tensor]
        embedded = super().embed_multimodal(**{self.pixels_field: [v.pixels for v in videos]})
        return embedded

    def separators(self, video: VideoLayout) -> Tensor | None:
        """Embeddings [S, D] of the text between a video's frames; None without any."""
        return None

    def video_positions(
        self, video: VideoLayout, fields: Mapping[str, Any]
    ) -> VideoPositions | None:
        """Where the tokens of a dense video stand; None where each is one after the last."""
        return None

    def run_staged(self, given: StagedInput, positions: Tensor, hidden_ND: Tensor) -> Tensor:
        """The decoder's output [N, D] of a step with METok prompts."""
        return self.staged(given, positions, hidden_ND)

    @property
    def class_token(self) -> bool:
        """Whether the features that `see` returns start with a class token."""
        return False

    # What this file adds.

    def load_weights(self, weights: Any) -> set[str]:
        """As the base class."""
        loaded: set[str] = super().load_weights(weights)
        # Load the towers while vLLM profiles memory; cached features are stale after a reload.
        self.stage1.video.cache.clear()
        return loaded

    @property
    def stage1(self) -> Stage1Encoder:
        """The encoder of METok requests; its towers are not part of this module's weights."""
        if self._stage1 is None:
            self._stage1 = self._build_stage1()
        return self._stage1

    @cached_property
    def staged(self) -> StagedDecoder:
        """The decoder in stages, for steps with a METok prompt."""
        decoder = self.language_model.model
        layout = StageLayout.of(self.metok.pruning_layers, len(decoder.layers))
        return StagedDecoder(
            decoder.layers,
            decoder.norm,
            layout,
            _attention_of,
            self.stage1.token_events,
            mean_over_ranks,
            self.stage1.events.record_prefill,
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        *,
        metok_staged: StagedInput | None = None,
        **kwargs: object,
    ) -> Any:
        """As vLLM's; a step with METok prompts runs in stages."""
        if metok_staged is None:
            return super().forward(
                input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
            )
        assert inputs_embeds is not None, "a step with a video has embeddings"
        return self.run_staged(metok_staged, positions, inputs_embeds)

    def embed_multimodal(self, **kwargs: object) -> Any:
        """As vLLM's; a video of a request with METok is compressed to [N1, D]."""
        _ = self.stage1  # vLLM's profiling run needs the towers as well
        fields: Any = kwargs.pop(wire.FIELD, None)
        requests = wire.unpack(fields, self.metok) if fields is not None else []
        if not any(requests):
            return super().embed_multimodal(**kwargs)
        videos = self.encoder_videos(kwargs)
        assert len(videos) == len(requests)
        dense = [i for i, request in enumerate(requests) if request is None]
        embedded = self.embed_dense([videos[i] for i in dense]) if dense else ()
        outputs = dict(zip(dense, embedded, strict=True))
        for i, request in enumerate(requests):
            if request is not None:
                outputs[i] = self._encode(videos[i], request)
        return tuple(outputs[i] for i in range(len(requests)))

    def _encode(self, given: EncoderVideo, request: wire.EncodeRequest) -> Tensor:
        video = request.video
        assert video is not None, "a video without its layout"
        pixels = given.pixels
        if pixels.is_floating_point():
            pixels = pixels.to(self.vision_weight().dtype)
        return self.stage1.encode(
            pixels,
            self.newline(),
            request,
            video,
            self.separators(video),
            self.video_positions(video, given.fields),
        )

    def _build_stage1(self) -> Stage1Encoder:
        stage1 = Stage1Encoder(
            self.metok,
            self.see,
            self.project,
            self.video_normalisation(),
            self._load_towers(),
            self.encoder_cache_tokens,
            picture=self.picture,
            width=self.event_width,
            resize=self.resize,
        )
        stage1.video.cache.reserve(self.vision_weight().device)
        return stage1

    def _load_towers(self) -> AlignmentTowers | None:
        path = self.metok.alignment_model
        if path is None or self.metok.alignment_mode == "none":
            logger.info(
                "METok: no alignment towers; a frame's relevance is how much it differs from its "
                "event's mean. Set alignment_model to a SigLIP or CLIP to rank by the question."
            )
            return None
        weight = self.vision_weight()
        towers = AlignmentTowers.load(path, weight.device, weight.dtype)
        if self.metok.alignment_mode == "shared":
            towers.share_vision(self.config, class_token=self.class_token)
        return towers


def _attention_of(layer: Any) -> Any:
    return layer.self_attn.attn


def mean_over_ranks(scores: Tensor) -> Tensor:
    """The mean over tensor parallel ranks, so that all select alike; each has as many heads."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return scores
    total: Tensor = tensor_model_parallel_all_reduce(scores)
    return total.div(ranks)
