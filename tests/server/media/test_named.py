"""Named media: a name belongs to one tenant, and the cache is bounded."""

from __future__ import annotations

from itertools import combinations

import pytest

from metok_vllm.errors import MediaError, MediaForbiddenError
from metok_vllm.server.media.named import (
    FIND,
    NAMED,
    EncodedMedia,
    NamedMedia,
    keep_url,
    key_of,
    named_url,
    split_keep,
)
from tests.server.media.loading import data_url, encoded, hash_of, load, payload
from tests.video import clips


def test_a_name_belongs_to_one_tenant_and_one_modality() -> None:
    parts = [("a", "video", "n"), ("b", "video", "n"), ("a", "image", "n"), ("a", "video", "m")]
    parts += [("a,video", "", "n"), ("", "a,video", "n")]
    assert len({key_of(*names) for names in parts}) == len(parts)
    for one, two in combinations(parts, 2):
        assert named_url(*one) != named_url(*two)


def test_an_internal_url_is_split_into_key_and_url() -> None:
    url = "data:video/jpeg;base64,AAAA,BBBB"
    key, inner = split_keep(keep_url("tenant", "video", "name", url))
    assert (key, inner) == (key_of("tenant", "video", "name"), url)
    assert named_url("tenant", "video", "name") == FIND + key_of("tenant", "video", "name")


@pytest.mark.parametrize("url", ["metok-keep:00:ab,data:,", "metok-find:00:ab", "data:,", ""])
def test_clients_cannot_make_internal_urls(url: str) -> None:
    assert split_keep(url) == (None, url)
    assert not url.startswith(FIND)


def test_an_internal_url_does_not_contain_the_name() -> None:
    assert "secret" not in named_url("secret", "video", "secret")


def test_the_least_recently_used_is_evicted_first() -> None:
    media = NamedMedia()
    for key in "abc":
        media.put(key, EncodedMedia(bytes(40)), 120)
    assert media.get("a") is not None
    media.put("d", EncodedMedia(bytes(40)), 120)
    assert media.get("b") is None
    assert [media.get(key) is not None for key in "acd"] == [True] * 3
    assert media.held_bytes == 120


def test_a_name_used_again_means_the_new_media() -> None:
    media = NamedMedia()
    media.put("a", EncodedMedia(b"old"), 100)
    media.put("a", EncodedMedia(b"new one", is_frame_list=True), 100)
    assert media.get("a") == EncodedMedia(b"new one", is_frame_list=True)
    assert media.held_bytes == 7
    media.put("a", EncodedMedia(bytes(101)), 100)
    assert media.get("a") is None, "the old media must not be found under the name"
    assert media.held_bytes == 0


@pytest.mark.usefixtures("metok_loader")
class TestThroughTheConnector:
    URL = data_url(encoded(clips.picture(1, 32, 24)), "image/png")

    @pytest.mark.parametrize("modality", ["video", "frames", "image"])
    def test_media_are_found_by_their_name(self, modality: str) -> None:
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
        with pytest.raises(MediaForbiddenError, match="send it with its data again") as caught:
            load(named_url("b", kind, name), kind)
        assert (caught.value.status, caught.value.reason) == (400, "unknown_uuid")

    def test_unreadable_media_are_not_stored(self) -> None:
        with pytest.raises(MediaError):
            load(keep_url("a", "image", "bad", data_url(b"no image", "image/png")), "image")
        with pytest.raises(MediaForbiddenError):
            load(named_url("a", "image", "bad"), "image")

    def test_the_cache_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load(keep_url("a", "image", "before", self.URL), "image")
        monkeypatch.setenv("METOK_MEDIA_NAMED_MEDIA_BYTES", "1")
        load(keep_url("a", "image", "after", self.URL), "image")
        with pytest.raises(MediaForbiddenError):
            load(named_url("a", "image", "after"), "image")
        monkeypatch.setenv("METOK_MEDIA_NAMED_MEDIA_BYTES", "0")
        load(keep_url("a", "image", "never", self.URL), "image")
        with pytest.raises(MediaForbiddenError):
            load(named_url("a", "image", "never"), "image")
        assert NAMED.held_bytes >= 0

    @pytest.mark.parametrize(
        "url", ["metok-keep:00:ab,data:image/png;base64,AAAA", "metok-find:00:ab", "metok-named:ab"]
    )
    def test_clients_cannot_make_internal_urls(self, url: str) -> None:
        with pytest.raises(MediaForbiddenError) as caught:
            load(url, "image")
        assert caught.value.reason == "bad_url"
