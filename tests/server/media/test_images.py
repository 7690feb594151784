"""Images and frame lists: equal to what vLLM reads, and apart for each tenant."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from metok_vllm.errors import MediaError
from metok_vllm.video.requester import Requester
from tests.server.media.loading import data_url, encoded, hash_of, load, payload
from tests.video import clips

pytestmark = pytest.mark.usefixtures("metok_loader")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_frames": 3}, {"num_frames": 9}, {"fps": 2.0}, {"num_frames": -1, "fps": 4}],
    ids=str,
)
def test_a_frame_list_is_read_as_vllm_reads_it(kind: str, options: dict[str, Any]) -> None:
    sent = payload(5, kind)
    expected, expected_metadata = (
        VideoMediaIO(ImageMediaIO(), **{"num_frames": 5, **options})
        .load_base64("video/jpeg", sent)
        .media
    )
    frames, metadata = load(f"data:video/jpeg;base64,{sent}", video=options).media
    np.testing.assert_array_equal(frames, expected)
    assert metadata == expected_metadata


@pytest.mark.parametrize(
    "options",
    [
        {"frames_indices": [0, 2, 4], "total_num_frames": 9, "duration": 3.5},
        {"do_sample_frames": True},
    ],
    ids=str,
)
def test_the_frame_metadata_of_a_request_is_passed_on(options: dict[str, Any]) -> None:
    sent = payload(3)
    expected = VideoMediaIO(ImageMediaIO(), **options).load_base64("video/jpeg", sent).media[1]
    assert load(f"data:video/jpeg;base64,{sent}", video=options).media[1] == expected
    with pytest.raises(MediaError) as caught:
        load(f"data:video/jpeg;base64,{payload(2)}", video={"frames_indices": [1], **options})
    assert caught.value.status == 422


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "turned"])
def test_an_image_is_read_as_vllm_reads_it(mode: str) -> None:
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


def test_other_image_modes_are_read_by_vllm() -> None:
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


def test_frame_lists_of_different_length_have_different_hashes() -> None:
    one = payload(1)
    both = [
        load(f"data:video/jpeg;base64,{sent}") for sent in (f"{one},{one}", f"{one},{one},{one}")
    ]
    assert hash_of(both[0]) != hash_of(both[1])
