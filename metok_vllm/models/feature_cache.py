"""Features of videos, cached for the next question about them.

An entry has frame means, image embeddings and tokens at the strides of the request that computed
them: all that is read after the towers. At LLaVA-OneVision-7B's sizes that is a ninth more
than the patch features before the projector (261 tokens of 3584 per frame, not 729 of 1152), at
0.5B's less than a third, and neither projector nor pooling runs again.

Bounded by bytes, least recently used out first. Under tensor parallelism all ranks get the same
requests in the same order and keep tensors of the same sizes, so they hit and miss alike: the
vision tower's collectives depend on it.

Shape suffixes: T frames, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from metok_vllm.config.methods import POOL
from metok_vllm.plan.layout import VideoLayout


@dataclass(frozen=True)
class VideoFeatures:
    """`mean_TD` over a frame's projected patches, float32; `image_TD` None if not computed.

    `pooled` holds a stride's tokens [frames of a chunk, tokens of a frame, D], chunk after chunk.
    With the reduction `select` they are selected instead, and `places` holds the place of each in
    its frame's dense grid, int64 [frames of a chunk, tokens of a frame].
    """

    mean_TD: Tensor
    image_TD: Tensor | None
    pooled: Mapping[int, tuple[Tensor, ...]]
    reduction: str = POOL
    places: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of whole storages, since a view keeps its storage alive."""
        by_stride = (*self.pooled.values(), *self.places.values())
        tensors = [self.mean_TD, *(part for parts in by_stride for part in parts)]
        if self.image_TD is not None:
            tensors.append(self.image_TD)
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({id_of.data_ptr(): id_of.nbytes() for id_of in storages}.values())


class FeatureCache:
    """Features by content key, layout and reduction, at most `most_bytes` of them; 0 is off.

    A client may give one id to two videos and then gets the features of the first, as in vLLM's
    own caches. The layout is part of the key, so that counts are never wrong ones.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        self.entries: OrderedDict[tuple[str, VideoLayout, str], VideoFeatures] = OrderedDict()
        self.reserved: Tensor | None = None

    def takes(self, content: str | None) -> bool:
        """Whether features with this key may be kept at all."""
        return self.most_bytes > 0 and content is not None

    def reserve(self, device: torch.device) -> None:
        """Allocate the cache's memory until the first entry, so that vLLM's profiling run does not
        give it to the KV cache. Nothing on a CPU, whose KV cache has a fixed size."""
        if self.most_bytes and device.type != "cpu":
            self.reserved = torch.empty(self.most_bytes, dtype=torch.uint8, device=device)

    def find(
        self,
        content: str | None,
        video: VideoLayout,
        strides: Collection[int],
        images: bool,
        reduction: str = POOL,
    ) -> VideoFeatures | None:
        """The features of a video, reduced this way; None unless they have all these strides and,
        where `images` is set, image embeddings."""
        if content is None or (content, video, reduction) not in self.entries:
            return None
        found = self.entries[content, video, reduction]
        if not found.pooled.keys() >= set(strides) or (images and found.image_TD is None):
            return None
        self.entries.move_to_end((content, video, reduction))
        return found

    def keep(self, content: str | None, video: VideoLayout, features: VideoFeatures) -> None:
        """Keep features in place of older ones of the same video; not those above the bound."""
        if content is None or features.nbytes > self.most_bytes:
            return
        self.reserved = None
        key = content, video, features.reduction
        if key in self.entries:
            self.held_bytes -= self.entries.pop(key).nbytes
        self.entries[key] = features
        self.held_bytes += features.nbytes
        while self.held_bytes > self.most_bytes:
            _, dropped = self.entries.popitem(last=False)
            self.held_bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop all entries, as after new weights."""
        self.entries.clear()
        self.held_bytes = 0
