"""Videos as open files: local and fetched ones never pass through this process's memory."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from metok_vllm.errors import MediaBusyError, MediaError, MediaTooLargeError
from metok_vllm.server.media.connector import MetokMediaConnector
from metok_vllm.server.media.fetch_budget import BUDGET
from metok_vllm.server.media.named import keep_url, named_url
from metok_vllm.server.media.part_urls import sample_url
from metok_vllm.video.requester import REQUESTER, Requester
from tests.server.http_servers import served
from tests.server.media.loading import data_url, hash_of
from tests.video import clips

pytestmark = pytest.mark.usefixtures("metok_loader")

CLIP = clips.encode(num_frames=30, size=(64, 48))
SMALL = len(CLIP) - 1
HOLE = 300 << 20


async def origin(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": CLIP})


@pytest.fixture(autouse=True)
def _private_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METOK_MEDIA_ALLOW_PRIVATE_HOSTS", "true")


@pytest.fixture
def local(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """The URL of a local clip, and what lets a connector read it."""
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    return (tmp_path / "clip.mp4").as_uri(), {"allowed_local_media_path": str(tmp_path)}


def video(url: str, requester: Requester | None = None, **options: Any) -> Any:
    async def load() -> Any:
        REQUESTER.set(requester)
        return await MetokMediaConnector(**options).fetch_video_async(url)

    return asyncio.run(load())


def test_every_way_has_its_own_limit(
    local: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = local
    sent = data_url(CLIP, "video/mp4")
    ways = {"MAX_BYTES": sent, "MAX_LOCAL_BYTES": url, "MAX_REMOTE_BYTES": ""}
    with served(origin) as port:
        ways["MAX_REMOTE_BYTES"] = f"http://127.0.0.1:{port}/clip.mp4"
        frames = {name: video(way, **options).media[0] for name, way in ways.items()}
        assert all((one == frames["MAX_BYTES"]).all() for one in frames.values())
        for name in ways:
            monkeypatch.setenv(f"METOK_MEDIA_{name}", str(SMALL))
            for other, way in ways.items():
                if other != name:
                    assert len(video(way, **options).media[0]) == 30
                    continue
                with pytest.raises(MediaTooLargeError) as caught:
                    video(way, **options)
                assert f" {SMALL} " in str(caught.value)
                assert f"--metok-media-{name.lower().replace('_', '-')})" in str(caught.value)
            monkeypatch.delenv(f"METOK_MEDIA_{name}")


def test_lengths_have_limits_of_their_own(
    local: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = local
    monkeypatch.setenv("METOK_MEDIA_MAX_DURATION_S", "1")
    assert len(video(url, **options).media[0]) == 30
    with pytest.raises(MediaTooLargeError, match=r"1 s \(--metok-media-max-duration-s\)"):
        video(data_url(CLIP, "video/mp4"))
    monkeypatch.setenv("METOK_MEDIA_MAX_LOCAL_DURATION_S", "0.5")
    with pytest.raises(MediaTooLargeError, match=r"\(--metok-media-max-local-duration-s\)"):
        video(url, **options)


def test_a_large_local_file_is_not_read_into_memory(
    local: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, options = local
    with (tmp_path / "clip.mp4").open("ab") as file:
        # A box of unused space; as a hole it takes no disk.
        file.write((HOLE).to_bytes(4) + b"free")
        file.truncate(len(CLIP) + HOLE)
    tracemalloc.start()
    try:
        frames, _ = video(url, **options).media
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames.shape == (30, 48, 64, 3)
    assert peak < 20 << 20


def test_no_descriptor_is_left(local: tuple[str, dict[str, Any]]) -> None:
    url, options = local
    with served(origin) as port:
        ways = [
            url,
            f"http://127.0.0.1:{port}/clip.mp4",
            url + "x",
            f"http://127.0.0.1:{port}/clip.mp4",
        ]
        video(url, **options)
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for way in ways:
            if way == url + "x":
                with pytest.raises(MediaError):
                    video(way, **options)
            else:
                video(way, **options)
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
    assert not BUDGET._fetches


def test_identity_is_the_content_and_the_sampling(
    local: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    url, options = local
    (tmp_path / "same.mp4").write_bytes(CLIP)
    (tmp_path / "other.mp4").write_bytes(clips.encode(num_frames=31, size=(64, 48)))
    same, other = ((tmp_path / name).as_uri() for name in ("same.mp4", "other.mp4"))
    own = hash_of(video(url, **options))
    assert hash_of(video(same, **options)) == own
    assert hash_of(video(other, **options)) != own
    assert hash_of(video(sample_url({"num_frames": 5}, url), **options)) != own
    tenant = Requester(tenant="a")
    assert hash_of(video(url, tenant, **options)) != own


def test_a_name_keeps_a_file_that_is_small_enough(
    local: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, options = local
    monkeypatch.setenv("METOK_MEDIA_MAX_BYTES", "1000")  # of data URLs
    video(keep_url("t", "video", "film", url), **options)
    assert len(video(named_url("t", "video", "film"), **options).media[0]) == 30
    monkeypatch.setenv("METOK_MEDIA_NAMED_MEDIA_BYTES", str(SMALL))
    video(keep_url("t", "video", "film", url), **options)
    with pytest.raises(MediaError, match="uuid"):
        video(named_url("t", "video", "film"), **options)


def test_fetched_bytes_count_until_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METOK_MEDIA_MAX_FETCHED_BYTES", str(len(CLIP) * 3 // 2))

    async def two(url: str) -> None:
        connector = MetokMediaConnector()
        held = await connector.fetcher.fetch(url)
        with pytest.raises(MediaBusyError, match="--metok-media-max-fetched-bytes"):
            await connector.fetch_video_async(url)
        held.close()
        await connector.fetch_video_async(url)

    with served(origin) as port:
        asyncio.run(two(f"http://127.0.0.1:{port}/clip.mp4"))


def test_one_client_cannot_hold_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METOK_MEDIA_MAX_FETCHED_BYTES", str(len(CLIP) * 2))

    async def two(url: str) -> None:
        fetcher = MetokMediaConnector().fetcher
        REQUESTER.set(Requester("greedy"))
        with await fetcher.fetch(url):
            with pytest.raises(MediaBusyError):
                await fetcher.fetch(url)
            REQUESTER.set(Requester("modest"))
            with await fetcher.fetch(url) as file:
                assert file.num_bytes == len(CLIP)

    with served(origin) as port:
        asyncio.run(two(f"http://127.0.0.1:{port}/clip.mp4"))


@pytest.mark.parametrize(
    ("chosen", "count"),
    [({"num_frames": 7}, 7), ({"fps": 5}, 6), ({"num_frames": 4, "fps": 5}, 4), ({"fps": 500}, 30)],
)
def test_one_video_may_be_sampled_in_its_own_way(
    local: tuple[str, dict[str, Any]], chosen: dict[str, Any], count: int
) -> None:
    url, options = local
    options["media_io_kwargs"] = {"video": {"num_frames": 9, "fps": 1}}
    for way in (url, data_url(CLIP, "video/mp4")):
        assert len(video(sample_url(chosen, way), **options).media[0]) == count
        assert len(video(way, **options).media[0]) == 1
