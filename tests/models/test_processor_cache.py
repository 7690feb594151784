"""A video that was rendered and never sent is sent with the next request."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.multimodal.cache.lru import (
    LruKeyReplicatedReceiverCache,
    LruKeyReplicatedSenderCache,
)
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

from metok_vllm.models import processor_cache
from metok_vllm.models.processor_cache import SentMediaCache, follow

ITEM = MultiModalKwargsItem(
    {"pixels": MultiModalFieldElem(torch.zeros(4), MultiModalBatchedField())}
)


class Engine:
    """An AsyncLLM with vLLM's own two caches; `refuse` makes it refuse a request."""

    def __init__(self) -> None:
        config: Any = SimpleNamespace(
            get_multimodal_config=lambda: SimpleNamespace(mm_processor_cache_gb=1)
        )
        self.renderer = SimpleNamespace(_mm_processor_cache=LruKeyReplicatedSenderCache(config))
        self.renderer.mm_processor_cache = self.renderer._mm_processor_cache
        self.receiver = LruKeyReplicatedReceiverCache(config)

    async def add_request(self, request_id: str, prompt: dict[str, Any], refuse: bool) -> str:
        if refuse:
            raise ValueError("refused")
        for key, item in zip(prompt["mm_hashes"]["video"], prompt["items"], strict=True):
            self.receiver.get_and_update_item(item, key)
        return request_id

    def render(self, *keys: str) -> dict[str, Any]:
        """As vLLM's processor goes about it: asks first, then hands over what is missing."""
        cache = self.renderer._mm_processor_cache
        if isinstance(cache, SentMediaCache):
            cache.commit()
        cached = cache.is_cached(list(keys))
        given = [None if known else (ITEM, ()) for known in cached]
        items = [item for item, _ in cache.get_and_update(given, list(keys))]
        return {"mm_hashes": {"video": list(keys)}, "items": items}

    def ask(self, *keys: str, refuse: bool = False) -> None:
        asyncio.run(self.add_request("id", self.render(*keys), refuse))


@pytest.fixture
def engine() -> Engine:
    engine = Engine()
    follow(engine)
    return engine


def test_vllm_without_it_loses_the_item_after_a_refused_request() -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="refused"):
        engine.ask("a", refuse=True)
    with pytest.raises(Exception, match="a"):
        engine.ask("a")


def test_a_refused_request_does_not_break_the_next(engine: Engine) -> None:
    with pytest.raises(ValueError, match="refused"):
        engine.ask("a", "b", refuse=True)
    engine.ask("a", "b")
    assert engine.render("a", "b")["items"] == [None, None], "sent once, found from then on"


def test_a_client_that_leaves_before_its_request_is_sent(engine: Engine) -> None:
    engine.render("a")
    engine.ask("a")


def test_requests_that_overtake_each_other(engine: Engine) -> None:
    first, second = engine.render("a"), engine.render("a")
    asyncio.run(engine.add_request("2", second, refuse=False))
    asyncio.run(engine.add_request("1", first, refuse=False))
    assert engine.render("a")["items"] == [None]


def test_entries_do_not_change_while_a_request_is_rendered(engine: Engine) -> None:
    engine.ask("a")
    cache: SentMediaCache = engine.renderer._mm_processor_cache
    assert not cache.is_cached_item("a"), "the event loop only leaves a note"
    cache.commit()
    assert cache.is_cached_item("a")


def test_what_is_never_sent_is_forgotten(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_cache, "MAX_RENDERED", 2)
    for key in "abcd":
        engine.render(key)
    cache: SentMediaCache = engine.renderer._mm_processor_cache
    assert list(cache._rendered) == ["c", "d"]


def test_clearing(engine: Engine) -> None:
    engine.ask("a")
    engine.renderer._mm_processor_cache.clear_cache()
    engine.receiver.clear_cache()
    engine.ask("a")


def test_another_cache_is_left_alone() -> None:
    engine: Any = SimpleNamespace(renderer=SimpleNamespace(mm_processor_cache=None))
    follow(engine)
    assert not hasattr(engine, "add_request")
