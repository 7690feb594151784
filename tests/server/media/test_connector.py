from __future__ import annotations

import asyncio
import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

from metok_vllm.demo import SAMPLE_VIDEO
from metok_vllm.errors import ConfigError, MediaError, MediaForbiddenError, MediaTooLargeError
from metok_vllm.server.media import connector as media_connector
from metok_vllm.server.media.connector import MetokMediaConnector
from metok_vllm.server.media.video_options import video_options
from metok_vllm.video.limits import MediaLimits

LIMITS = MediaLimits()


def picture(width: int = 16, height: int = 12, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(buffer, kind)
    return buffer.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{encoded(data)}"


def frame_list(*frames: bytes) -> str:
    return "data:video/jpeg;base64," + ",".join(map(encoded, frames))


def connector(**kwargs: Any) -> MetokMediaConnector:
    return MetokMediaConnector(**kwargs)


def image(url: str, **kwargs: Any) -> Any:
    return asyncio.run(connector(**kwargs).fetch_image_async(url))


def video(url: str, **kwargs: Any) -> Any:
    return asyncio.run(connector(**kwargs).fetch_video_async(url))


def rejected(reason: str) -> float:
    return REGISTRY.get_sample_value("metok_media_rejected_total", {"reason": reason}) or 0.0


def test_vllm_finds_it_by_name() -> None:
    media_connector.register()
    assert isinstance(MEDIA_CONNECTOR_REGISTRY.load("metok"), MetokMediaConnector)


def test_an_image_is_decoded() -> None:
    assert image(data_url(picture(16, 12))).media.size == (16, 12)


def test_the_same_without_an_event_loop_and_inside_one() -> None:
    url = data_url(picture())

    async def inside() -> Any:
        return connector().fetch_image(url)

    assert connector().fetch_image(url).media.size == (16, 12)
    assert asyncio.run(inside()).media.size == (16, 12)


@pytest.mark.parametrize(
    ("url", "status", "reason"),
    [
        ("data:image/png;base64,@@@", 400, "bad_base64"),
        ("data:image/png;base64,abc", 400, "bad_base64"),
        ("data:image/png,abc", 400, "bad_base64"),
        ("data:image/png;base64", 400, "bad_base64"),
        (data_url(b"not a picture"), 422, "unreadable"),
        (data_url(picture()[:40]), 422, "unreadable"),
        (data_url(b""), 422, "unreadable"),
        ("file:///etc/hostname", 400, "local_file"),
        ("ftp://a.example/x.png", 400, "bad_url"),
        ("nonsense", 400, "bad_url"),
        ("http://127.0.0.1:1/x.png", 400, "private_address"),
    ],
)
def test_refused_images_are_counted(url: str, status: int, reason: str) -> None:
    before = rejected(reason)
    with pytest.raises(MediaError) as caught:
        image(url)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert rejected(reason) == before + 1
    assert url not in str(caught.value)


def test_a_truncated_picture_with_a_good_header_is_422() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    with pytest.raises(MediaError) as caught:
        image(data_url(buffer.getvalue()[:2000]))
    assert caught.value.status == 422


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METOK_MEDIA_MAX_FRAME_PIXELS", "100")
    assert image(data_url(picture(10, 10))).media.size == (10, 10)
    with pytest.raises(MediaTooLargeError) as caught:
        image(data_url(picture(10, 11)))
    assert "100 pixels" in str(caught.value)


def test_a_data_url_over_the_size_limit_is_413(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture(kind="PNG")
    monkeypatch.setenv("METOK_MEDIA_MAX_BYTES", str(len(data)))
    image(data_url(data))
    monkeypatch.setenv("METOK_MEDIA_MAX_BYTES", str(len(data) - 3))
    with pytest.raises(MediaTooLargeError):
        image(data_url(data))


def test_files_only_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "media"
    root.mkdir()
    (root / "in side.png").write_bytes(picture())
    (tmp_path / "outside.png").write_bytes(picture())
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    options = {"allowed_local_media_path": str(root)}
    assert image((root / "in side.png").as_uri(), **options).media.size == (16, 12)
    for url in (
        (tmp_path / "outside.png").as_uri(),
        (root / "link.png").as_uri(),
        f"file://{root}/../outside.png",
        f"file://{root}/%2e%2e/outside.png",
    ):
        with pytest.raises(MediaForbiddenError):
            image(url, **options)
    with pytest.raises(MediaError) as caught:
        image((root / "missing.png").as_uri(), **options)
    assert caught.value.status == 422
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "nul%00.png", "loop.png", "folder", "[bad"])
def test_a_file_name_that_the_system_refuses_is_422(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError) as caught:
        image(f"file://{tmp_path}/{name}", allowed_local_media_path=str(tmp_path))
    assert (caught.value.status, str(caught.value)) == (422, "the file cannot be read")
    assert caught.value.__cause__ is None


def test_a_malformed_file_url_is_422(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        image("file://[::1/x.png", allowed_local_media_path=str(tmp_path))
    assert (caught.value.status, str(caught.value)) == (422, "the file cannot be read")


def test_a_file_that_may_not_be_read_is_422(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.png").write_bytes(picture())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MediaError) as caught:
        image((tmp_path / "a.png").as_uri(), allowed_local_media_path=str(tmp_path))
    assert (caught.value.status, str(caught.value)) == (422, "the file cannot be read")


def test_only_the_allowed_hosts() -> None:
    with pytest.raises(MediaForbiddenError) as caught:
        image("https://other.example/x.png", allowed_media_domains=["videos.example"])
    assert caught.value.reason == "host_not_allowed"


class TestFrameLists:
    def test_all_frames_that_were_sent_are_used(self) -> None:
        (frames, metadata) = video(frame_list(*[picture()] * 40)).media
        assert frames.shape == (40, 12, 16, 3)
        assert metadata["frames_indices"] == list(range(40))

    def test_unless_the_client_says_how_many(self) -> None:
        options = {"video": {"num_frames": 3}}
        frames, _ = video(frame_list(*[picture()] * 5), media_io_kwargs=options).media
        assert len(frames) == 3

    @pytest.mark.parametrize(
        ("frames", "status"),
        [
            ([picture()] * (LIMITS.max_frames + 1), 413),
            ([picture(), b"not a picture"], 422),
            ([picture(), picture()[:60]], 422),
            ([picture(), picture(8, 8)], 422),
            ([b""], 422),
        ],
    )
    def test_refused(self, frames: list[bytes], status: int) -> None:
        with pytest.raises(MediaError) as caught:
            video(frame_list(*frames))
        assert caught.value.status == status

    def test_wrong_base64(self) -> None:
        with pytest.raises(MediaForbiddenError):
            video(frame_list(picture()) + ",@@")

    def test_a_list_over_the_decoded_size_is_scaled_down(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METOK_MEDIA_MAX_DECODED_BYTES", str(16 * 12 * 3 * 2))
        assert video(frame_list(*[picture()] * 2)).media[0].shape == (2, 12, 16, 3)
        assert video(frame_list(*[picture()] * 3)).media[0].shape == (3, 6, 8, 3)


class TestVideos:
    def test_the_sample_video_through_our_loader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from metok_vllm.engine import video_loader

        video_loader.register()
        monkeypatch.setenv("VLLM_VIDEO_LOADER_BACKEND", "metok")
        url = data_url(SAMPLE_VIDEO.read_bytes(), "video/mp4")
        frames, metadata = video(url, media_io_kwargs={"video": {"num_frames": 6}}).media
        assert len(frames) == len(metadata["timestamps_s"]) == 6

    def test_bytes_that_are_no_video_are_422(self) -> None:
        with pytest.raises(MediaError) as caught:
            video(data_url(b"no video at all", "video/mp4"))
        assert caught.value.status == 422


class TestVideoOptions:
    def test_the_default_number_of_frames(self) -> None:
        assert video_options({}, LIMITS)["num_frames"] == LIMITS.default_frames

    def test_a_frame_rate_is_capped_by_the_most_frames(self) -> None:
        assert video_options({"fps": 2}, LIMITS)["num_frames"] == LIMITS.max_frames

    def test_all_frames_means_the_most(self) -> None:
        assert video_options({"num_frames": -1}, LIMITS)["num_frames"] == LIMITS.max_frames

    @pytest.mark.parametrize(
        "frames",
        [0, -2, LIMITS.max_frames + 1, 10**400, "8", 8.0, float("nan"), float("inf"), True, None],
    )
    def test_numbers_of_frames_out_of_range(self, frames: object) -> None:
        with pytest.raises(ConfigError) as caught:
            video_options({"num_frames": frames}, LIMITS)
        assert caught.value.field == "media_io_kwargs.video.num_frames"
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize("fps", [-1, -1.0, 0.001, 0.5, 1, 29.97, 1000])
    def test_frame_rates(self, fps: float) -> None:
        assert video_options({"fps": fps}, LIMITS)["fps"] == fps

    @pytest.mark.parametrize(
        "fps",
        ["2", None, True, [1], 0, 0.0, -2, -0.5, 5e-324, 1e-4, 1000.1, 10**400, -(10**400)]
        + [float(text) for text in ("nan", "inf", "-inf")],
    )
    def test_frame_rates_that_cannot_be_used(self, fps: object) -> None:
        with pytest.raises(ConfigError) as caught:
            video_options({"fps": fps}, LIMITS)
        assert caught.value.field == "media_io_kwargs.video.fps"
