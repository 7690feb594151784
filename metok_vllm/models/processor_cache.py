"""vLLM's cache of processed media on the API server's side, filled by what the engine was sent.

Source: vllm/multimodal/cache/lru.py, version 0.32. There an item counts as sent once it is
rendered, so a request that is refused afterwards, or whose client leaves, breaks the next one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any

from vllm.multimodal.cache.base import MultiModalProcessorCacheItemMetadata
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache

# Rendered items whose requests are on their way; one that is forgotten is only sent again.
MAX_RENDERED = 256


class SentMediaCache(LruKeyReplicatedSenderCache):
    """Takes the place of `stock` and shares its entries.

    Items are rendered in one thread and sent in the event loop's, which only leaves notes: entries
    must not change while a request is rendered.
    """

    def __init__(self, stock: LruKeyReplicatedSenderCache) -> None:
        self._cache = stock._cache
        self._rendered: OrderedDict[str, MultiModalProcessorCacheItemMetadata] = OrderedDict()
        self._sent: deque[str] = deque()

    def get_and_update_item(self, mm_item: Any, mm_hash: str) -> Any:
        """As vLLM's; a new item is found by later requests once it was sent."""
        cached = self._cache.get(mm_hash)
        if cached is not None:
            return None, cached.prompt_updates
        assert mm_item is not None, f"an item of the cache was dropped while in use: {mm_hash}"
        self._rendered[mm_hash] = MultiModalProcessorCacheItemMetadata(*mm_item)
        if len(self._rendered) > MAX_RENDERED:
            self._rendered.popitem(last=False)
        return mm_item

    def sent(self, hashes: Iterable[str]) -> None:
        """The engine was sent a request with these items; from any thread."""
        self._sent.extend(hashes)

    def commit(self) -> None:
        """Let the items that were sent be found; before a request is rendered, in that thread."""
        while self._sent:
            mm_hash = self._sent.popleft()
            metadata = self._rendered.pop(mm_hash, None)
            if metadata is not None:
                self.cache_if_fits(self._cache, mm_hash, metadata)

    def clear_cache(self) -> None:
        """As vLLM's."""
        super().clear_cache()
        self._rendered.clear()
        self._sent.clear()


def follow(engine_client: Any) -> None:
    """Have the cache of an AsyncLLM, if it has one, follow what the engine is sent."""
    renderer = engine_client.renderer
    stock = renderer.mm_processor_cache
    if type(stock) is not LruKeyReplicatedSenderCache:
        return
    cache = renderer._mm_processor_cache = SentMediaCache(stock)
    add_request = engine_client.add_request

    async def add_and_note(request_id: str, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        added = await add_request(request_id, prompt, *args, **kwargs)
        hashes = prompt.get("mm_hashes") if isinstance(prompt, dict) else None
        for of_modality in (hashes or {}).values():
            cache.sent(of_modality)
        return added

    engine_client.add_request = add_and_note
