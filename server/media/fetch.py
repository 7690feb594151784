"""Downloads media over http(s): checked and pinned addresses, bounded redirects, size and time.

The URL that httpx opens holds the checked address. The Host header and the TLS server name keep
the real name, so certificates are verified as usual.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import httpx

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import (
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
)
from metok_vllm.server.media.address import Resolver, checked_addresses, system_resolver
from metok_vllm.server.media.fetch_budget import BUDGET, RunningFetch, too_many_fetched_bytes
from metok_vllm.server.media.threads import FETCH_LOOP
from metok_vllm.video.channel import write_all
from metok_vllm.video.limits import MediaLimits, Transport, flag_of
from metok_vllm.video.requester import current
from metok_vllm.video.video_file import VideoFile

PORTS = {"http": 80, "https": 443}
# Each chunk of a body costs the same work, so chunks after the first FREE_CHUNKS must hold
# MIN_CHUNK_BYTES on average.
FREE_CHUNKS, MIN_CHUNK_BYTES = 4096, 64
# What httpx, httpcore, h11 and ssl raise for a bad address, connection or answer.
FETCH_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError)
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A compressed body could expand without limit; video and images are compressed already.
HEADERS = {"accept-encoding": "identity", "user-agent": "metok-vllm"}


@dataclass(frozen=True)
class Fetcher:
    """Fetches URLs under `limits`; `allowed_hosts` empty means any public host."""

    limits: MediaLimits
    allowed_hosts: Collection[str] = ()
    resolver: Resolver = system_resolver

    @cached_property
    def _private(self) -> PrivateHosts:
        return PrivateHosts.of(self.limits.allow_private_hosts)

    async def fetch(self, url: str, transport: Transport = Transport.DATA) -> VideoFile:
        """The body at `url`, in memory that counts against `max_fetched_bytes` until it is closed.

        `transport` says which limit it has: a video's, or (DATA) that of other media. Raises
        MediaError or a subclass, which names the HTTP status.
        """
        return await FETCH_LOOP.run(self._fetch(url, transport))

    async def _fetch(self, url: str, transport: Transport) -> VideoFile:
        seconds = self.limits.fetch_timeout_s
        fetch: RunningFetch | None = None
        try:
            async with asyncio.timeout(seconds) as deadline:
                fetch = BUDGET.start(current().client, deadline)
                await self._follow(parse_url(url), fetch, transport)
            fetch.complete = True
            return VideoFile(fetch.file, Transport.REMOTE, partial(BUDGET.release, fetch))
        except BaseException as error:
            if fetch is not None:
                fetch.file.close()
                BUDGET.release(fetch)
            if not isinstance(error, TimeoutError):
                raise
            if fetch is not None and fetch.cancelled:
                raise too_many_fetched_bytes() from None
            raise MediaDeadlineError(
                f"the media URL was not downloaded within {seconds:g} seconds "
                f"({flag_of('fetch_timeout_s')})",
                "fetch_timeout",
            ) from None

    async def _follow(self, url: httpx.URL, fetch: RunningFetch, transport: Transport) -> None:
        for _ in range(self.limits.max_redirects + 1):
            redirect = await self._get(url, fetch, transport)
            if redirect is None:
                return
            url = redirect
        raise MediaForbiddenError(
            f"the media URL redirects more than {self.limits.max_redirects} times "
            f"({flag_of('max_redirects')})",
            "redirects",
        )

    async def _get(
        self, url: httpx.URL, fetch: RunningFetch, transport: Transport
    ) -> httpx.URL | None:
        """The URL of a redirect, or None once the body is read."""
        self._check_host(url)
        port = url.port or PORTS[url.scheme]
        addresses = await checked_addresses(
            _ascii_host(url), port, private=self._private, resolver=self.resolver
        )
        # A proxy from the environment would resolve the name again, so trust_env is off.
        async with httpx.AsyncClient(trust_env=False, verify=_tls(), timeout=None) as client:
            for address in addresses:
                try:
                    return await self._get_from(client, url, address, fetch, transport)
                except MediaError:
                    raise
                except httpx.ConnectError:
                    continue
                except FETCH_ERRORS:
                    raise MediaError("the media URL could not be read", "unreachable") from None
        raise MediaError("the host of the media URL cannot be reached", "unreachable")

    async def _get_from(
        self,
        client: httpx.AsyncClient,
        url: httpx.URL,
        address: str,
        fetch: RunningFetch,
        transport: Transport,
    ) -> httpx.URL | None:
        headers = {**HEADERS, "host": url.netloc.decode("ascii")}
        pinned = url.copy_with(host=address)
        tls_name = {"sni_hostname": _ascii_host(url)}
        async with client.stream("GET", pinned, headers=headers, extensions=tls_name) as response:
            if response.status_code in REDIRECTS and "location" in response.headers:
                return parse_url(response.headers["location"], base=url)
            if response.status_code != 200:
                status = response.status_code
                raise MediaError(f"the media URL answered with status {status}", "unreachable")
            await self._read(response, fetch, transport)
        return None

    async def _read(
        self, response: httpx.Response, fetch: RunningFetch, transport: Transport
    ) -> None:
        limit, flag = self.limits.bytes_of(transport)
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large(limit, flag)
        chunks = 0
        async for chunk in response.aiter_raw():
            chunks += 1
            BUDGET.add(fetch, len(chunk), self.limits.max_fetched_bytes)
            if fetch.num_bytes > limit:
                raise too_large(limit, flag)
            if chunks > FREE_CHUNKS + fetch.num_bytes // MIN_CHUNK_BYTES:
                raise MediaError("the media URL sends its body in too small chunks", "unreachable")
            write_all(fetch.file, chunk)

    def _check_host(self, url: httpx.URL) -> None:
        allowed = self.allowed_hosts
        if allowed and url.host not in allowed and _ascii_host(url) not in allowed:
            raise MediaForbiddenError(
                "the host of the media URL is not on this server's list of allowed hosts",
                "host_not_allowed",
            )


def parse_url(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """An absolute http(s) URL, parsed as the request parses it. Raises MediaForbiddenError."""
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
        # httpx decodes host and port lazily and raises only then.
        usable = parsed.scheme in PORTS and bool(parsed.host) and bool(_ascii_host(parsed))
        port = parsed.port
    except (httpx.InvalidURL, ValueError):
        raise MediaForbiddenError("the media URL is malformed", "bad_url") from None
    if not usable:
        raise MediaForbiddenError(
            "media must come as an http, https or data URL, or as a file URL where the server "
            "allows that",
            "bad_url",
        )
    if port is not None and not 1 <= port <= 65535:
        raise MediaForbiddenError("the media URL names a port that does not exist", "bad_url")
    return parsed


def too_large(limit: int, flag: str) -> MediaTooLargeError:
    """The error for media over the `limit` bytes that `flag` sets."""
    return MediaTooLargeError(f"the media is over the limit of {limit} bytes ({flag})")


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
