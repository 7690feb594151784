from __future__ import annotations

from collections.abc import Iterator

import pytest

from metok_vllm.engine import video_loader
from metok_vllm.video.pool import POOL


@pytest.fixture
def metok_loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """METok reads videos in vLLM, and no decoder is busy at the end."""
    video_loader.register()
    monkeypatch.setenv("VLLM_VIDEO_LOADER_BACKEND", "metok")
    yield
    assert not POOL.queue._running
    assert not POOL.queue._waiting
