"""Threads that decode: which request they belong to, and when they end."""

from __future__ import annotations

import asyncio
import time

import pytest

from metok_vllm.errors import MediaBusyError, MediaError
from metok_vllm.server.media.connector import MetokMediaConnector
from metok_vllm.server.media.threads import in_own_thread
from metok_vllm.video.pool import POOL
from metok_vllm.video.requester import REQUESTER, Requester, current
from tests.server.media.loading import data_url, encoded
from tests.video import clips
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("metok_loader")


def test_cancelling_a_request_frees_its_decoders() -> None:
    heavy = data_url(clips.heavy(), "video/mp4")
    small = data_url(clips.encode(num_frames=20), "video/mp4")

    async def leave() -> None:
        connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
        REQUESTER.set(Requester("gone"))
        tasks = [asyncio.ensure_future(connector.fetch_video_async(heavy)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(POOL.queue._waiting) > 4, 20)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        REQUESTER.set(Requester("other"))
        started = time.monotonic()
        await connector.fetch_video_async(small)
        assert time.monotonic() - started < 3

    asyncio.run(leave())


def test_a_requester_that_leaves_ends_its_decoding() -> None:
    """The task is not cancelled here; only its requester leaves."""
    heavy = data_url(clips.heavy(), "video/mp4")

    async def leave() -> None:
        requester = Requester("gone")
        REQUESTER.set(requester)
        connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
        task = asyncio.ensure_future(connector.fetch_video_async(heavy))
        await asyncio.to_thread(wait_until, lambda: len(POOL.queue._running) == 1, 20)
        requester.finish()
        with pytest.raises(MediaError) as caught:
            await asyncio.wait_for(task, 2)
        assert (caught.value.status, caught.value.reason) == (503, "abandoned")

    asyncio.run(leave())


def test_a_thread_runs_in_the_context_of_its_requester() -> None:
    async def ask() -> tuple[str, str]:
        REQUESTER.set(Requester("a"))
        first = asyncio.ensure_future(in_own_thread(lambda: current().client))
        REQUESTER.set(Requester("b"))
        second = asyncio.ensure_future(in_own_thread(lambda: current().client))
        return await first, await second

    assert asyncio.run(ask()) == ("a", "b")


def test_waiting_videos_do_not_delay_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM has eight media threads; here twelve videos of one client wait."""
    monkeypatch.setenv("METOK_MEDIA_MAX_WAITING", "12")
    heavy = data_url(clips.heavy(), "video/mp4")
    image = data_url(encoded(clips.picture(1, 32, 24)), "image/png")

    async def ask() -> None:
        connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
        requester = Requester("many")
        REQUESTER.set(requester)
        tasks = [asyncio.ensure_future(connector.fetch_video_async(heavy)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: len(POOL.queue._waiting) > 9, 20)
        REQUESTER.set(Requester("one"))
        started = time.monotonic()
        assert (await connector.fetch_image_async(image)).media.size == (32, 24)
        # A heavy video has a decoder for four seconds; all of them take a minute.
        assert time.monotonic() - started < 20
        requester.finish()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(end, MediaBusyError) for end in ended)

    asyncio.run(ask())
