from __future__ import annotations

import asyncio

import pytest

from metok_vllm.errors import MediaError, MediaForbidden
from metok_vllm.server.address import checked_addresses, is_public, system_resolver


@pytest.mark.parametrize(
    "address",
    [
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
        "not an address",
        "",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def resolve(*addresses: str, allow_private: bool = False) -> list[str]:
    async def resolver(_host: str, _port: int) -> list[str]:
        return list(addresses)

    return asyncio.run(
        checked_addresses("a.example", 80, allow_private=allow_private, resolver=resolver)
    )


def test_one_private_address_among_public_ones_is_refused() -> None:
    assert resolve("1.1.1.1", "8.8.8.8") == ["1.1.1.1", "8.8.8.8"]
    with pytest.raises(MediaForbidden) as caught:
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
        asyncio.run(checked_addresses(host, 80, allow_private=False, resolver=system_resolver))
    assert caught.value.reason in ("private_address", "unreachable")


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(MediaError) as caught:
        asyncio.run(checked_addresses("does-not-exist.invalid", 80, allow_private=False))
    assert caught.value.status == 422
