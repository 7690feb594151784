"""Names of media belong to one tenant, and what is kept is bounded."""

from __future__ import annotations

from itertools import combinations

import pytest

from metok_vllm.server.media.named import (
    FIND,
    Kept,
    NamedMedia,
    keep_url,
    key_of,
    named_url,
    split_keep,
)


def test_a_name_is_one_tenants_and_one_modalitys() -> None:
    parts = [("a", "video", "n"), ("b", "video", "n"), ("a", "image", "n"), ("a", "video", "m")]
    parts += [("a,video", "", "n"), ("", "a,video", "n")]
    assert len({key_of(*names) for names in parts}) == len(parts)
    for one, two in combinations(parts, 2):
        assert named_url(*one) != named_url(*two)


def test_urls_are_taken_apart_again() -> None:
    url = "data:video/jpeg;base64,AAAA,BBBB"
    key, inner = split_keep(keep_url("tenant", "video", "name", url))
    assert (key, inner) == (key_of("tenant", "video", "name"), url)
    assert named_url("tenant", "video", "name") == FIND + key_of("tenant", "video", "name")


@pytest.mark.parametrize("url", ["metok-keep:00:ab,data:,", "metok-find:00:ab", "data:,", ""])
def test_clients_cannot_make_them(url: str) -> None:
    assert split_keep(url) == (None, url)
    assert not url.startswith(FIND)


def test_nothing_of_a_name_can_be_read_back() -> None:
    assert "secret" not in named_url("secret", "video", "secret")


def test_the_least_recently_used_goes_first() -> None:
    media = NamedMedia()
    for key in "abc":
        media.keep(key, Kept(bytes(40)), 120)
    assert media.find("a") is not None
    media.keep("d", Kept(bytes(40)), 120)
    assert media.find("b") is None
    assert [media.find(key) is not None for key in "acd"] == [True] * 3
    assert media.held_bytes == 120


def test_a_name_given_again_stands_for_the_new_media() -> None:
    media = NamedMedia()
    media.keep("a", Kept(b"old"), 100)
    media.keep("a", Kept(b"new one", is_frame_list=True), 100)
    assert media.find("a") == Kept(b"new one", is_frame_list=True)
    assert media.held_bytes == 7
    media.keep("a", Kept(bytes(101)), 100)
    assert media.find("a") is None, "it must not stand for what it stood for before"
    assert media.held_bytes == 0
