from __future__ import annotations

import asyncio
import ipaddress

import pytest

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import MediaError, MediaForbiddenError
from metok_vllm.server.media.address import checked_addresses, is_public, system_resolver

PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2001:db8::1",
    "192.0.0.1",
    "192.0.0.9",
    "192.0.0.170",
    "192.88.99.1",
    "192.88.99.2",
    "100.127.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "fec0::1",
    "feff::1",
    "64:ff9b:1::1",
    "64:ff9b:1:ffff::a9fe:a9fe",
    "64:ff9b::c000:aa",
    "2002:a9fe:a9fe::1",
    "2002:c058:6301::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:20::1",
    "3fff::1",
    "100::1",
    "5f00::1",
    "::7f00:1",
    "::ffff:0:7f00:1",
]
PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.1",
    "192.0.1.1",
    "198.20.0.1",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
    "2002:101:101::1",
]


@pytest.mark.parametrize("address", [*PRIVATE, "not an address", ""])
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_refusal_does_not_depend_on_python_s_tables(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        monkeypatch.setattr(kind, "is_global", True)
        monkeypatch.setattr(kind, "is_multicast", False)
        monkeypatch.setattr(kind, "is_reserved", False)
    assert is_public("1.1.1.1")
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def resolve(*addresses: str, allow_private: bool = False) -> list[str]:
    async def resolver(_host: str, _port: int) -> list[str]:
        return list(addresses)

    return asyncio.run(
        checked_addresses(
            "a.example", 80, private=PrivateHosts(every=allow_private), resolver=resolver
        )
    )


def test_one_private_address_among_public_ones_is_refused() -> None:
    assert resolve("1.1.1.1", "8.8.8.8") == ["1.1.1.1", "8.8.8.8"]
    with pytest.raises(MediaForbiddenError) as caught:
        resolve("1.1.1.1", "192.168.0.7")
    assert caught.value.status == 400
    assert "192.168" not in str(caught.value)
    assert resolve("192.168.0.7", allow_private=True) == ["192.168.0.7"]


def test_a_host_without_addresses_is_unreachable() -> None:
    with pytest.raises(MediaError) as caught:
        resolve()
    assert (caught.value.status, caught.value.reason) == (422, "unreachable")


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "localhost"])
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    with pytest.raises(MediaError) as caught:
        asyncio.run(checked_addresses(host, 80, resolver=system_resolver))
    assert caught.value.reason in ("private_address", "unreachable")


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(MediaError) as caught:
        asyncio.run(checked_addresses("does-not-exist.invalid", 80))
    assert caught.value.status == 422
