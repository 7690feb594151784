"""Which hosts a media URL may reach: a name is resolved here, and every address is checked.

The caller connects to the returned addresses only. A name that later resolves to another address
(DNS rebinding) has no effect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import MediaError, MediaForbiddenError

Resolver = Callable[[str, int], Awaitable[list[str]]]
NONE_PRIVATE = PrivateHosts()
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# IANA's special-purpose registries, because Python's own tables change between patch releases.
# In IPv6 only global unicast is public, without its special blocks (2001::/23: Teredo, ORCHID).
NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "3fff::/20")
)


async def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of `host` by the system's resolver. Raises OSError when there are none."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def checked_addresses(
    host: str,
    port: int,
    *,
    private: PrivateHosts = NONE_PRIVATE,
    resolver: Resolver = system_resolver,
) -> list[str]:
    """Addresses of `host`, each public or allowed by `private`.

    Raises MediaForbiddenError if any address is neither, MediaError if there are none.
    """
    try:
        addresses = await resolver(host, port)
    except (OSError, ValueError):  # UnicodeError: an empty or too long name
        addresses = []
    if not addresses:
        raise MediaError("the host of the media URL cannot be found", "unreachable")
    not_public = [address for address in addresses if not is_public(address)]
    if not all(private.allow(host, port, address) for address in not_public):
        raise MediaForbiddenError(
            "the media URL points to a private, loopback or link-local address, "
            "which this server does not fetch from",
            "private_address",
        )
    return addresses


def is_public(address: str) -> bool:
    """Whether `address` is on the public internet. IPv4 embedded in IPv6 is checked as IPv4."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if embedded is None and ip in NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip not in GLOBAL_UNICAST_V6 or any(ip in block for block in NOT_PUBLIC_V6):
            return False
    elif any(ip in block for block in NOT_PUBLIC_V4):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
