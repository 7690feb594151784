"""Downloads media over http(s): checked and pinned addresses, bounded redirects, size and time.

The URL that httpx opens holds the checked address. The Host header and the TLS server name keep
the real name, so certificates are verified as usual.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import httpx

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import (
    MediaBusyError,
    MediaDeadlineError,
    MediaError,
    MediaForbiddenError,
    MediaTooLargeError,
)
from metok_vllm.server.media.address import Resolver, checked_addresses, system_resolver
from metok_vllm.server.media.threads import FETCH_LOOP
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import current

PORTS = {"http": 80, "https": 443}
# Each chunk of a body costs the same work, so chunks after the first FREE_CHUNKS must hold
# MIN_CHUNK_BYTES on average.
FREE_CHUNKS, MIN_CHUNK_BYTES = 4096, 64
# What httpx, httpcore, h11 and ssl raise for a bad address, connection or answer.
FETCH_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError)
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A compressed body could expand without limit; video and images are compressed already.
HEADERS = {"accept-encoding": "identity", "user-agent": "metok-vllm"}


@dataclass(eq=False)
class RunningFetch:
    """One fetch, the client it runs for, and the bytes it holds. `deadline` bounds all of it."""

    client: str
    deadline: asyncio.Timeout
    num_bytes: int = 0
    cancelled: bool = False

    def cancel(self) -> None:
        """End the fetch by moving its deadline to now."""
        self.cancelled = True
        self.deadline.reschedule(asyncio.get_running_loop().time())


class FetchBudget:
    """Bytes that all fetches hold at once. Used from the fetch loop only.

    Over the limit, the largest fetch of the client with the most bytes is ended.
    """

    def __init__(self) -> None:
        self._fetches: set[RunningFetch] = set()

    @contextmanager
    def fetch(self, client: str, deadline: asyncio.Timeout) -> Iterator[RunningFetch]:
        """Count a fetch for `client` inside the block."""
        fetch = RunningFetch(client, deadline)
        self._fetches.add(fetch)
        try:
            yield fetch
        finally:
            self._fetches.discard(fetch)

    def add(self, fetch: RunningFetch, num_bytes: int, limit: int) -> None:
        """Count received bytes. Raises MediaBusyError if `fetch` itself must end."""
        fetch.num_bytes += num_bytes
        running = [other for other in self._fetches if not other.cancelled]
        if sum(other.num_bytes for other in running) <= limit:
            return
        client_bytes: Counter[str] = Counter()
        for other in running:
            client_bytes[other.client] += other.num_bytes
        largest = max(running, key=lambda other: (client_bytes[other.client], other.num_bytes))
        if largest is fetch:
            raise too_many_fetched_bytes()
        largest.cancel()


BUDGET = FetchBudget()


@dataclass(frozen=True)
class Fetcher:
    """Fetches URLs under `limits`; `allowed_hosts` empty means any public host."""

    limits: MediaLimits
    allowed_hosts: Collection[str] = ()
    resolver: Resolver = system_resolver

    @cached_property
    def _private(self) -> PrivateHosts:
        return PrivateHosts.of(self.limits.allow_private_hosts)

    async def fetch(self, url: str) -> bytes:
        """The body at `url`. Raises MediaError or a subclass, which names the HTTP status."""
        return await FETCH_LOOP.run(self._fetch(url))

    async def _fetch(self, url: str) -> bytes:
        seconds = self.limits.fetch_timeout_s
        try:
            async with asyncio.timeout(seconds) as deadline:
                with BUDGET.fetch(current().client, deadline) as fetch:
                    return await self._follow(parse_url(url), fetch)
        except TimeoutError:
            if fetch.cancelled:
                raise too_many_fetched_bytes() from None
            raise MediaDeadlineError(
                f"the media URL was not downloaded within {seconds:g} seconds", "fetch_timeout"
            ) from None

    async def _follow(self, url: httpx.URL, fetch: RunningFetch) -> bytes:
        for _ in range(self.limits.max_redirects + 1):
            answer = await self._get(url, fetch)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise MediaForbiddenError(
            f"the media URL redirects more than {self.limits.max_redirects} times", "redirects"
        )

    async def _get(self, url: httpx.URL, fetch: RunningFetch) -> bytes | httpx.URL:
        """The body, or the URL of a redirect."""
        self._check_host(url)
        port = url.port or PORTS[url.scheme]
        addresses = await checked_addresses(
            _ascii_host(url), port, private=self._private, resolver=self.resolver
        )
        # A proxy from the environment would resolve the name again, so trust_env is off.
        async with httpx.AsyncClient(trust_env=False, verify=_tls(), timeout=None) as client:
            for address in addresses:
                try:
                    return await self._get_from(client, url, address, fetch)
                except MediaError:
                    raise
                except httpx.ConnectError:
                    continue
                except FETCH_ERRORS:
                    raise MediaError("the media URL could not be read", "unreachable") from None
        raise MediaError("the host of the media URL cannot be reached", "unreachable")

    async def _get_from(
        self, client: httpx.AsyncClient, url: httpx.URL, address: str, fetch: RunningFetch
    ) -> bytes | httpx.URL:
        headers = {**HEADERS, "host": url.netloc.decode("ascii")}
        pinned = url.copy_with(host=address)
        tls_name = {"sni_hostname": _ascii_host(url)}
        async with client.stream("GET", pinned, headers=headers, extensions=tls_name) as response:
            if response.status_code in REDIRECTS and "location" in response.headers:
                return parse_url(response.headers["location"], base=url)
            if response.status_code != 200:
                status = response.status_code
                raise MediaError(f"the media URL answered with status {status}", "unreachable")
            return await self._read(response, fetch)

    async def _read(self, response: httpx.Response, fetch: RunningFetch) -> bytes:
        limit = self.limits.max_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large(limit)
        body, chunks = bytearray(), 0
        async for chunk in response.aiter_raw():
            body += chunk
            chunks += 1
            if len(body) > limit:
                raise too_large(limit)
            if chunks > FREE_CHUNKS + len(body) // MIN_CHUNK_BYTES:
                raise MediaError("the media URL sends its body in too small chunks", "unreachable")
            BUDGET.add(fetch, len(chunk), self.limits.max_fetched_bytes)
        return bytes(body)

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


def too_large(limit: int) -> MediaTooLargeError:
    """The error for media over `limit` bytes."""
    return MediaTooLargeError(f"the media is over the limit of {limit} bytes")


def too_many_fetched_bytes() -> MediaBusyError:
    """The error of a fetch that was ended to keep all fetches within the limit."""
    return MediaBusyError("the server fetches too much media at once; try again later")


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
