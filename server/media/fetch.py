"""Downloads media for a request: pinned addresses, checked redirects, bounded size and time.

httpx does the HTTP. The address that was checked is put into the URL, while the Host header and
the TLS server name keep the real name, so certificates are verified as usual.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache

import httpx

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import MediaDeadline, MediaError, MediaForbidden, MediaTooLarge
from metok_vllm.server.media.address import Resolver, checked_addresses, system_resolver
from metok_vllm.server.media.fetch_budget import BUDGET, Holding, busy
from metok_vllm.server.media.fetch_loop import LOOP
from metok_vllm.video.limits import MediaLimits
from metok_vllm.video.requester import current

PORTS = {"http": 80, "https": 443}
# Pieces of a body beyond the first must have so many bytes on average: each costs the same work.
FREE_PIECES, PIECE = 4096, 64
# Whatever httpx, httpcore, h11 and ssl make of an address, a connection or an answer.
UNREADABLE = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError)
REDIRECTS = frozenset({301, 302, 303, 307, 308})
# A compressed body could be a small bomb; media is compressed already.
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

    async def fetch(self, url: str) -> bytes:
        """The body at `url`. Raises MediaError and its kinds, each with its HTTP status."""
        return await LOOP.run(self._fetch(url))

    async def _fetch(self, url: str) -> bytes:
        seconds = self.limits.fetch_timeout_s
        try:
            async with asyncio.timeout(seconds) as deadline:
                with BUDGET.holding(current().client, deadline) as held:
                    return await self._follow(parse_url(url), held)
        except TimeoutError:
            if held.gave_way:
                raise busy() from None
            raise MediaDeadline(
                f"the media URL did not deliver within {seconds:g} seconds", "fetch_timeout"
            ) from None

    async def _follow(self, url: httpx.URL, held: Holding) -> bytes:
        for _ in range(self.limits.max_redirects + 1):
            answer = await self._get(url, held)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise MediaForbidden(
            f"the media URL redirects more than {self.limits.max_redirects} times", "redirects"
        )

    async def _get(self, url: httpx.URL, held: Holding) -> bytes | httpx.URL:
        self._check_host(url)
        port = url.port or PORTS[url.scheme]
        addresses = await checked_addresses(
            _ascii_host(url), port, private=self._private, resolver=self.resolver
        )
        # trust_env off: a proxy from the environment would connect wherever it likes.
        client = httpx.AsyncClient(trust_env=False, verify=_tls(), timeout=None)
        async with client:
            for address in addresses:
                try:
                    return await self._get_from(client, url, address, held)
                except MediaError:
                    raise
                except httpx.ConnectError:
                    continue
                except UNREADABLE:
                    raise MediaError("the media URL could not be read", "unreachable") from None
        raise MediaError("the host of the media URL cannot be reached", "unreachable")

    async def _get_from(
        self, client: httpx.AsyncClient, url: httpx.URL, address: str, held: Holding
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
            return await self._read(response, held)

    async def _read(self, response: httpx.Response, held: Holding) -> bytes:
        limit = self.limits.max_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > limit:
            raise too_large(limit)
        body, pieces = bytearray(), 0
        async for piece in response.aiter_raw():
            body += piece
            pieces += 1
            if len(body) > limit:
                raise too_large(limit)
            if pieces > FREE_PIECES + len(body) // PIECE:
                raise MediaError("the media URL delivers in too many pieces", "unreachable")
            BUDGET.add(held, len(piece), self.limits.max_fetched_bytes)
        return bytes(body)

    def _check_host(self, url: httpx.URL) -> None:
        allowed = self.allowed_hosts
        if allowed and url.host not in allowed and _ascii_host(url) not in allowed:
            raise MediaForbidden(
                "the host of the media URL is not on this server's list of allowed hosts",
                "host_not_allowed",
            )


def parse_url(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """An absolute http(s) URL. One parser for the checks and the request. Raises MediaForbidden."""
    try:
        parsed = httpx.URL(url) if base is None else base.join(url)
        # Read lazily, and refused only then.
        usable = parsed.scheme in PORTS and bool(parsed.host) and bool(_ascii_host(parsed))
        port = parsed.port
    except (httpx.InvalidURL, ValueError):
        raise MediaForbidden("the media URL is malformed", "bad_url") from None
    if not usable:
        raise MediaForbidden(
            "media must come as an http, https or data URL, or as a file URL where the server "
            "allows that",
            "bad_url",
        )
    if port is not None and not 1 <= port <= 65535:
        raise MediaForbidden("the media URL names a port that does not exist", "bad_url")
    return parsed


def too_large(limit: int) -> MediaTooLarge:
    """The refusal of media over `limit` bytes."""
    return MediaTooLarge(f"the media is over the limit of {limit} bytes")


def _ascii_host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
