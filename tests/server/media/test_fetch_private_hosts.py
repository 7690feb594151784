"""Only the allowed private hosts can be fetched from, also after redirects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from metok_vllm.errors import MediaError, MediaForbiddenError
from metok_vllm.server.media.fetch import Fetcher
from metok_vllm.server.media.video_files import all_of
from metok_vllm.video.limits import MediaLimits
from tests.server.media.raw_hosts import RawHost, raw_host, sending

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nopen"
SECRET = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret"
NAMES = {
    "media.internal": ["127.0.0.1"],
    "other.internal": ["127.0.0.1"],
    "both.internal": ["1.1.1.1", "127.0.0.1"],
    "xn--bro-hoa.internal": ["127.0.0.1"],
    "mapped.internal": ["::ffff:127.0.0.1"],
    "nat64.internal": ["64:ff9b::7f00:1"],
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[RawHost, RawHost]]:
    """An allowed host, and another one that is not allowed."""
    with raw_host(sending(OK)) as opened, raw_host(sending(SECRET)) as closed:
        yield opened, closed


def fetch(url: str, allowed: str) -> bytes:
    async def resolver(host: str, port: int) -> list[str]:
        if host in NAMES:
            return NAMES[host]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    limits = MediaLimits(allow_private_hosts=allowed, fetch_timeout_s=5)
    return all_of(asyncio.run(Fetcher(limits, resolver=resolver).fetch(url)))


V4 = ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "user:word@127.0.0.1"]
V6 = ["[::ffff:127.0.0.1]", "mapped.internal"]


@pytest.mark.parametrize("host", V4)
def test_an_address_is_allowed_in_every_spelling(hosts: tuple[RawHost, RawHost], host: str) -> None:
    opened, _ = hosts
    assert fetch(f"http://{host}:{opened.port}/", f"127.0.0.1:{opened.port}") == b"open"


@pytest.mark.parametrize("host", [*V4, *V6, "0177.0.0.1"])
def test_all_other_hosts_are_closed(hosts: tuple[RawHost, RawHost], host: str) -> None:
    opened, closed = hosts
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://{host}:{closed.port}/", f"127.0.0.1:{opened.port}")
    assert caught.value.reason in ("private_address", "bad_url")
    assert not closed.requests


@pytest.mark.parametrize("host", ["media.internal", "MEDIA.Internal", "media.internal."])
def test_a_name_is_allowed_on_its_port(
    hosts: tuple[RawHost, RawHost], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = hosts
    monkeypatch.setitem(NAMES, "media.internal.", ["127.0.0.1"])
    allowed = f"media.internal:{opened.port}"
    assert fetch(f"http://{host}:{opened.port}/", allowed) == b"open"
    for url in (
        f"http://{host}:{closed.port}/",
        f"http://127.0.0.1:{opened.port}/",
        f"http://other.internal:{opened.port}/",
        f"http://media.internal@127.0.0.1:{opened.port}/",
        f"http://nat64.internal:{opened.port}/",
    ):
        with pytest.raises(MediaForbiddenError) as caught:
            fetch(url, allowed)
        assert caught.value.reason == "private_address"
    assert not closed.requests


def test_an_international_name(hosts: tuple[RawHost, RawHost]) -> None:
    opened, _ = hosts
    allowed = f"xn--bro-hoa.internal:{opened.port}"
    assert fetch(f"http://bÜro.internal:{opened.port}/", allowed) == b"open"


def test_all_addresses_of_a_name_must_be_open(hosts: tuple[RawHost, RawHost]) -> None:
    opened, _ = hosts
    for allowed in (f"127.0.0.2:{opened.port}", f"127.0.0.1:{opened.port + 1}"):
        with pytest.raises(MediaForbiddenError):
            fetch(f"http://both.internal:{opened.port}/", allowed)


@pytest.mark.parametrize("target", ["127.0.0.1:{closed}", "169.254.169.254", "0x7f.1:{closed}"])
def test_an_allowed_host_cannot_redirect_to_a_closed_one(
    hosts: tuple[RawHost, RawHost], target: str
) -> None:
    _, closed = hosts
    place = "http://" + target.format(closed=closed.port) + "/latest"
    head = f"HTTP/1.1 302 Found\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n"
    with raw_host(sending(head.encode())) as leads, pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://127.0.0.1:{leads.port}/", f"127.0.0.1:{leads.port}")
    assert caught.value.reason == "private_address"
    assert not closed.requests


def test_a_closed_host_is_not_contacted_for_a_redirect(hosts: tuple[RawHost, RawHost]) -> None:
    opened, _ = hosts
    head = f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{opened.port}/\r\n\r\n"
    with raw_host(sending(head.encode())) as leads:
        with pytest.raises(MediaForbiddenError):
            fetch(f"http://127.0.0.1:{leads.port}/", f"127.0.0.1:{opened.port}")
        assert not leads.requests
        both = f"127.0.0.1:{opened.port},127.0.0.1:{leads.port}"
        assert fetch(f"http://127.0.0.1:{leads.port}/", both) == b"open"


def test_a_network_without_a_port_allows_80_and_443_only(
    hosts: tuple[RawHost, RawHost],
) -> None:
    opened, _ = hosts
    with pytest.raises(MediaForbiddenError):
        fetch(f"http://127.0.0.1:{opened.port}/", "127.0.0.0/8")
    with pytest.raises(MediaError) as caught:  # allowed, but no server listens there
        fetch("http://127.77.77.77/", "127.0.0.0/8")
    assert caught.value.reason == "unreachable"
    assert fetch(f"http://127.0.0.1:{opened.port}/", f"127.0.0.0/8:{opened.port}") == b"open"
