"""Media on their way through the connector: what vLLM gets, for whom, and for how long."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO
from vllm.multimodal.parse import MultiModalDataParser

from metok_vllm.engine import video_loader
from metok_vllm.errors import MediaBusy, MediaError, MediaForbidden
from metok_vllm.server.media.connector import MetokMediaConnector
from metok_vllm.server.media.named import NAMED, keep_url, named_url
from metok_vllm.server.media.threads import in_own_thread
from metok_vllm.video.pool import POOL
from metok_vllm.video.requester import REQUESTER, Requester, current
from tests.video import clips
from tests.waiting import wait_until

KEPT_BYTES = 300


@pytest.fixture(autouse=True)
def _our_loader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    video_loader.register()
    monkeypatch.setenv("VLLM_VIDEO_LOADER_BACKEND", "metok")
    yield
    assert not POOL.turns._running
    assert not POOL.turns._waiting


def encoded(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def payload(count: int, kind: str = "PNG") -> str:
    frames = (encoded(clips.picture(number, 32, 24), kind) for number in range(count))
    return ",".join(base64.b64encode(frame).decode() for frame in frames)


def load(
    url: str, modality: str = "video", *, requester: Requester | None = None, **io: Any
) -> Any:
    """What the connector makes of a URL."""

    async def loaded() -> Any:
        REQUESTER.set(requester)
        connector = MetokMediaConnector(media_io_kwargs=io)
        return await getattr(connector, f"fetch_{modality}_async")(url)

    return asyncio.run(loaded())


def hash_of(media: Any) -> str:
    """The identity that vLLM gives a video or an image."""
    modality = "image" if isinstance(media.media, Image.Image) else "video"
    items = MultiModalDataParser().parse_mm_data({modality: [media]})[modality]
    return str(MultiModalHasher.hash_kwargs("sha256", item=items.get_all_items_for_hash()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_frames": 3}, {"num_frames": 9}, {"fps": 2.0}, {"num_frames": -1, "fps": 4}],
    ids=str,
)
def test_a_frame_list_is_what_vllm_makes_of_it(kind: str, options: dict[str, Any]) -> None:
    sent = payload(5, kind)
    known = dict(options)
    if "num_frames" not in known:
        known["num_frames"] = 5  # whoever sends a list means all of it
    expected, told = VideoMediaIO(ImageMediaIO(), **known).load_base64("video/jpeg", sent).media
    frames, metadata = load(f"data:video/jpeg;base64,{sent}", video=options).media
    np.testing.assert_array_equal(frames, expected)
    assert metadata == told


@pytest.mark.parametrize(
    "options",
    [
        {"frames_indices": [0, 2, 4], "total_num_frames": 9, "duration": 3.5},
        {"do_sample_frames": True},
    ],
    ids=str,
)
def test_what_a_request_says_of_its_frames_is_told_on(options: dict[str, Any]) -> None:
    sent = payload(3)
    expected = VideoMediaIO(ImageMediaIO(), **options).load_base64("video/jpeg", sent).media[1]
    assert load(f"data:video/jpeg;base64,{sent}", video=options).media[1] == expected
    with pytest.raises(MediaError) as caught:
        load(f"data:video/jpeg;base64,{payload(2)}", video={"frames_indices": [1], **options})
    assert caught.value.status == 422


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "turned"])
def test_an_image_is_what_vllm_makes_of_it(mode: str) -> None:
    pixels = np.dstack([clips.picture(2, 40, 30), np.arange(1200, dtype=np.uint8).reshape(30, 40)])
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    file = io.BytesIO()
    if mode == "turned":
        exif[0x0112] = 5
        image.save(file, "PNG", exif=exif)
    elif mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(file, "PNG")
    else:
        kind = "JPEG" if mode == "CMYK" else "PNG"
        image.convert("RGB" if mode == "CMYK" else mode).convert(mode).save(file, kind)
    data = file.getvalue()
    for background in ((255, 255, 255), (9, 200, 30)):
        options = {"rgba_background_color": list(background)}
        expected = ImageMediaIO(**options).load_bytes(data)
        image = load(data_url(data, "image/png"), "image", image=options)
        assert image.media.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image.media), np.asarray(expected.media))
        assert image.original_bytes == data


def test_other_modes_are_left_to_vllm() -> None:
    data = encoded(np.zeros((4, 6, 4), np.uint8))
    assert load(data_url(data, "image/png"), "image", image={"image_mode": None}).mode == "RGBA"


def test_tenants_share_no_identity_in_vllm() -> None:
    video, image = clips.encode(num_frames=20), encoded(clips.picture(1, 32, 24))
    urls = [
        ("video", data_url(video, "video/mp4")),
        ("video", f"data:video/jpeg;base64,{payload(2)}"),
        ("image", data_url(image, "image/png")),
    ]
    for modality, url in urls:
        tenants = [None, Requester(), Requester(tenant="a"), Requester(tenant="b")]
        hashes = [hash_of(load(url, modality, requester=tenant)) for tenant in tenants]
        again = hash_of(load(url, modality, requester=Requester(tenant="a")))
        assert hashes[0] == hashes[1]
        assert len(set(hashes)) == 3
        assert again == hashes[2]


def test_lists_that_are_cut_otherwise_are_other_lists() -> None:
    one = payload(1)
    both = [
        load(f"data:video/jpeg;base64,{sent}") for sent in (f"{one},{one}", f"{one},{one},{one}")
    ]
    assert hash_of(both[0]) != hash_of(both[1])


class TestEnds:
    def test_a_cancelled_request_is_not_decoded_on(self) -> None:
        heavy = data_url(clips.heavy(), "video/mp4")
        small = data_url(clips.encode(num_frames=20), "video/mp4")

        async def leave() -> None:
            connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
            REQUESTER.set(Requester("gone"))
            tasks = [asyncio.ensure_future(connector.fetch_video_async(heavy)) for _ in range(10)]
            await asyncio.to_thread(wait_until, lambda: len(POOL.turns._waiting) > 4, 20)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended)
            REQUESTER.set(Requester("other"))
            started = time.monotonic()
            await connector.fetch_video_async(small)
            assert time.monotonic() - started < 3

        asyncio.run(leave())

    def test_the_end_of_a_request_reaches_its_threads(self) -> None:
        """Where the task that waits is not cancelled, only the requester leaves."""
        heavy = data_url(clips.heavy(), "video/mp4")

        async def leave() -> None:
            requester = Requester("gone")
            REQUESTER.set(requester)
            connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
            task = asyncio.ensure_future(connector.fetch_video_async(heavy))
            await asyncio.to_thread(wait_until, lambda: len(POOL.turns._running) == 1, 20)
            requester.leave()
            with pytest.raises(MediaError) as caught:
                await asyncio.wait_for(task, 2)
            assert (caught.value.status, caught.value.reason) == (503, "abandoned")

        asyncio.run(leave())

    def test_threads_know_their_requester(self) -> None:
        async def ask() -> tuple[str, str]:
            REQUESTER.set(Requester("a"))
            first = asyncio.ensure_future(in_own_thread(lambda: current().client))
            REQUESTER.set(Requester("b"))
            second = asyncio.ensure_future(in_own_thread(lambda: current().client))
            return await first, await second

        assert asyncio.run(ask()) == ("a", "b")

    def test_waiting_videos_hold_up_no_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """vLLM has eight threads for media; twelve videos of one client wait here."""
        monkeypatch.setenv("METOK_MEDIA_MAX_WAITING", "12")
        heavy = data_url(clips.heavy(), "video/mp4")
        image = data_url(encoded(clips.picture(1, 32, 24)), "image/png")

        async def ask() -> None:
            connector = MetokMediaConnector(media_io_kwargs={"video": {"num_frames": 128}})
            requester = Requester("many")
            REQUESTER.set(requester)
            tasks = [asyncio.ensure_future(connector.fetch_video_async(heavy)) for _ in range(20)]
            await asyncio.to_thread(wait_until, lambda: len(POOL.turns._waiting) > 9, 20)
            REQUESTER.set(Requester("one"))
            started = time.monotonic()
            assert (await connector.fetch_image_async(image)).media.size == (32, 24)
            # The heavy ones have a decoder for four seconds before they make room; all of them
            # together take a minute.
            assert time.monotonic() - started < 20
            requester.leave()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert any(isinstance(end, MediaBusy) for end in ended)

        asyncio.run(ask())


class TestNames:
    URL = data_url(encoded(clips.picture(1, 32, 24)), "image/png")

    @pytest.mark.parametrize("modality", ["video", "frames", "image"])
    def test_what_was_sent_under_a_name_is_found_by_it(self, modality: str) -> None:
        urls = {
            "video": data_url(clips.encode(num_frames=20), "video/mp4"),
            "frames": f"data:video/jpeg;base64,{payload(3)}",
            "image": self.URL,
        }
        kind = "image" if modality == "image" else "video"
        name = f"name of {modality}"
        sent = load(keep_url("a", kind, name, urls[modality]), kind)
        found = load(named_url("a", kind, name), kind)
        assert hash_of(found) == hash_of(sent) == hash_of(load(urls[modality], kind))
        with pytest.raises(MediaForbidden, match="send it with its data again") as caught:
            load(named_url("b", kind, name), kind)
        assert (caught.value.status, caught.value.reason) == (400, "unknown_uuid")

    def test_what_cannot_be_read_is_not_kept(self) -> None:
        with pytest.raises(MediaError):
            load(keep_url("a", "image", "bad", data_url(b"no image", "image/png")), "image")
        with pytest.raises(MediaForbidden):
            load(named_url("a", "image", "bad"), "image")

    def test_what_is_kept_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load(keep_url("a", "image", "before", self.URL), "image")
        monkeypatch.setenv("METOK_MEDIA_NAMED_MEDIA_BYTES", "1")
        load(keep_url("a", "image", "after", self.URL), "image")
        with pytest.raises(MediaForbidden):
            load(named_url("a", "image", "after"), "image")
        monkeypatch.setenv("METOK_MEDIA_NAMED_MEDIA_BYTES", "0")
        load(keep_url("a", "image", "never", self.URL), "image")
        with pytest.raises(MediaForbidden):
            load(named_url("a", "image", "never"), "image")
        assert NAMED.held_bytes >= 0

    @pytest.mark.parametrize(
        "url", ["metok-keep:00:ab,data:image/png;base64,AAAA", "metok-find:00:ab", "metok-named:ab"]
    )
    def test_clients_cannot_make_such_addresses(self, url: str) -> None:
        with pytest.raises(MediaForbidden) as caught:
            load(url, "image")
        assert caught.value.reason == "bad_url"
