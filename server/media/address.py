"""Which hosts a media URL may reach: names are resolved here, and every address is checked.

The caller connects to the addresses returned and to nothing else, so a name that resolves
differently a moment later (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import MediaError, MediaForbidden

Resolver = Callable[[str, int], Awaitable[list[str]]]
NONE_PRIVATE = PrivateHosts()
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Python's own tables differ from patch release to patch release, so what must never be reached is
# written down here (IANA's special-purpose registries). Of IPv6 only the global unicast space is
# public at all, without its special blocks (2001::/23 holds Teredo and ORCHID).
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
    """Addresses of `host` that may be connected to: public, or opened by `private`.

    Raises MediaForbidden if any of them is neither, MediaError if there are none.
    """
    try:
        addresses = await resolver(host, port)
    except (OSError, ValueError):  # UnicodeError is one, of names that are too long or empty
        addresses = []
    if not addresses:
        raise MediaError("the host of the media URL cannot be found", "unreachable")
    closed = [address for address in addresses if not is_public(address)]
    if not all(private.open(host, port, address) for address in closed):
        raise MediaForbidden(
            "the media URL points to a private, loopback or link-local address, "
            "which this server does not fetch from",
            "private_address",
        )
    return addresses


def is_public(address: str) -> bool:
    """Whether `address` is on the public internet. IPv4 inside IPv6 counts as that IPv4."""
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
