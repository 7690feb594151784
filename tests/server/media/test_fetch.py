from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from metok_vllm.errors import (
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
)
from metok_vllm.server.media import address
from metok_vllm.server.media.fetch import Fetcher, parse_url
from metok_vllm.server.media.video_files import all_of
from metok_vllm.video.limits import MediaLimits
from tests.server.http_servers import served

BODY = bytes(range(256)) * 40
LIMITS = MediaLimits(max_bytes=20_000, fetch_timeout_s=5.0, allow_private_hosts=True)
REDIRECTS = {
    "/once": "/video",
    "/relative": "video",
    "/loop": "/loop",
    "/to-private": "http://10.0.0.1/secret",
    "/to-name": "http://inside.example/secret",
    "/to-file": "file:///etc/hostname",
}
hosts_seen: list[str] = []


async def origin(scope: Scope, _receive: Receive, send: Send) -> None:
    path = scope["path"]
    headers: list[tuple[bytes, bytes]] = []
    hosts_seen.append(dict(scope["headers"])[b"host"].decode())

    async def start(status: int) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(data: bytes, more: bool = False) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if path in REDIRECTS:
        headers.append((b"location", REDIRECTS[path].encode()))
        await start(302)
        await body(b"")
    elif path == "/video":
        await start(200)
        await body(BODY)
    elif path == "/declared":
        headers.append((b"content-length", b"20001"))
        await start(200)
        await body(b"x" * 20001)
    elif path == "/undeclared":
        await start(200)
        for _ in range(1000):
            await body(b"x" * 1000, more=True)
        await body(b"")
    elif path == "/slow":
        await start(200)
        for _ in range(600):
            await body(b"x", more=True)
            await asyncio.sleep(0.05)
        await body(b"")
    elif path == "/compressed":
        headers.append((b"content-encoding", b"gzip"))
        await start(200)
        await body(b"\x1f\x8b not really")
    else:
        await start(404)
        await body(b"")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(origin) as port:
        yield port


def fetch(url: str, limits: MediaLimits = LIMITS, **kwargs: object) -> bytes:
    return all_of(asyncio.run(Fetcher(limits, **kwargs).fetch(url)))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/video", "/once", "/relative"])
def test_the_body_is_returned(port: int, path: str) -> None:
    assert fetch(f"http://127.0.0.1:{port}{path}") == BODY


def test_a_private_address_is_refused_by_default(port: int) -> None:
    hosts_seen.clear()
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://127.0.0.1:{port}/video", replace(LIMITS, allow_private_hosts=False))
    assert caught.value.reason == "private_address"
    assert hosts_seen == []


def test_the_connection_goes_to_the_checked_address(port: int) -> None:
    asked: list[str] = []

    async def resolver(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    hosts_seen.clear()
    assert fetch(f"http://video.example:{port}/video", resolver=resolver) == BODY
    assert asked == ["video.example"]
    assert hosts_seen == [f"video.example:{port}"]


def test_dns_rebinding_between_redirects_is_refused(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "is_public", lambda a: a == "127.0.0.1")
    answers = [["127.0.0.1"], ["192.168.0.1"]]

    async def rebinding(_host: str, _port: int) -> list[str]:
        return answers.pop(0)

    limits = replace(LIMITS, allow_private_hosts=False)
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://video.example:{port}/once", limits, resolver=rebinding)
    assert caught.value.reason == "private_address"
    assert answers == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/to-private", "private_address"),
        ("/to-name", "private_address"),
        ("/to-file", "bad_url"),
        ("/loop", "redirects"),
    ],
)
def test_redirects_are_checked_again(
    port: int, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "is_public", lambda a: a == "127.0.0.1")

    async def resolver(host: str, _port: int) -> list[str]:
        return {"127.0.0.1": ["127.0.0.1"], "10.0.0.1": ["10.0.0.1"]}.get(host, ["172.16.0.9"])

    limits = replace(LIMITS, allow_private_hosts=False)
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://127.0.0.1:{port}{path}", limits, resolver=resolver)
    assert caught.value.reason == reason


def test_redirects_can_be_switched_off(port: int) -> None:
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(f"http://127.0.0.1:{port}/once", replace(LIMITS, max_redirects=0))
    assert caught.value.reason == "redirects"


@pytest.mark.parametrize("path", ["/declared", "/undeclared"])
def test_size_is_limited_while_it_arrives(port: int, path: str) -> None:
    with pytest.raises(MediaTooLargeError) as caught:
        fetch(f"http://127.0.0.1:{port}{path}")
    assert caught.value.status == 413
    assert "20000 bytes" in str(caught.value)


def test_a_slow_host_ends_at_the_deadline(port: int) -> None:
    started = time.monotonic()
    with pytest.raises(MediaDeadlineError) as caught:
        fetch(f"http://127.0.0.1:{port}/slow", replace(LIMITS, fetch_timeout_s=0.3))
    assert caught.value.status == 504
    assert time.monotonic() - started < 3


def test_a_compressed_body_is_not_unpacked(port: int) -> None:
    assert fetch(f"http://127.0.0.1:{port}/compressed").startswith(b"\x1f\x8b")


@pytest.mark.parametrize("suffix", [":{port}/missing", ":1/refused"])
def test_an_unreadable_url_is_422(port: int, suffix: str) -> None:
    url = "http://127.0.0.1" + suffix.format(port=port)
    with pytest.raises(MediaError) as caught:
        fetch(url)
    assert (caught.value.status, caught.value.reason) == (422, "unreachable")
    assert "127.0.0.1" not in str(caught.value)


def test_only_allowed_hosts(port: int) -> None:
    url = f"http://127.0.0.1:{port}/video"
    assert fetch(url, allowed_hosts={"127.0.0.1"}) == BODY
    with pytest.raises(MediaForbiddenError) as caught:
        fetch(url, allowed_hosts={"videos.example"})
    assert caught.value.reason == "host_not_allowed"


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example/x", "gopher://a", "http://", "//a/b", "x", "", "http://[::1", "http://a\n/"],
)
def test_urls_that_are_not_http(url: str) -> None:
    with pytest.raises(MediaForbiddenError) as caught:
        parse_url(url)
    assert caught.value.reason == "bad_url"


def test_no_confusion_about_the_host() -> None:
    # One parser for check and connection; these have fooled pairs of parsers.
    assert parse_url("http://public.example@10.0.0.1/").host == "10.0.0.1"
    assert isinstance(parse_url("http://1.1.1.1#@10.0.0.1/"), httpx.URL)
    assert parse_url("http://1.1.1.1#@10.0.0.1/").host == "1.1.1.1"
