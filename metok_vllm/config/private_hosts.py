"""The private hosts from which media may be fetched.

The setting is false, true, or a comma list of `host`, `host:port`, `address`, `address:port`,
`network/bits` and `network/bits:port`. IPv6 addresses are in brackets before a port.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from metok_vllm.config.environment import truth
from metok_vllm.errors import ConfigError

FIELD = "allow_private_hosts"
# The ports of an entry that states none.
WEB_PORTS = frozenset({80, 443})
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_V6 = re.compile(r"\[(?P<inner>[^\]]+)\](?P<bits>/\d+)?(:(?P<port>\d+))?")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Entry:
    """A host name or network, and its allowed ports."""

    host: str | Network
    ports: frozenset[int]

    def allows(self, host: str, port: int, address: str) -> bool:
        """Whether `address`, resolved from the name `host`, may be reached on `port`."""
        if port not in self.ports:
            return False
        if isinstance(self.host, str):
            return self.host == plain_name(host)
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return ip.version == self.host.version and ip in self.host


@dataclass(frozen=True)
class PrivateHosts:
    """The allowed private hosts: all of them, or those of `entries`."""

    every: bool = False
    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, value: bool | str) -> PrivateHosts:
        """From the setting. Raises ConfigError with the invalid entry."""
        if isinstance(value, bool):
            return cls(every=value)
        try:
            return cls(every=truth(value))
        except ValueError:
            words = [word.strip() for word in value.split(",")]
            return cls(entries=tuple(_entry(word) for word in words if word))

    def allow(self, host: str, port: int, address: str) -> bool:
        """Whether `address` may be reached on `port` for the URL's name `host`."""
        return self.every or any(entry.allows(host, port, address) for entry in self.entries)


def plain_name(host: str) -> str:
    """A host name for comparison: lower case, without a trailing dot."""
    return host.lower().removesuffix(".")


def _entry(word: str) -> Entry:
    host, ports = _split(word)
    network = _network(host)
    if network is not None:
        return Entry(network, ports)
    name = plain_name(host)
    if not _NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise _refusal(word, "is no host, address or network")
    if "." not in name and ports is WEB_PORTS:
        # A mistyped "true" must not become a host.
        raise _refusal(word, f"needs a port, as in {name[:40]}:80")
    return Entry(name, ports)


def _split(word: str) -> tuple[str, frozenset[int]]:
    """Host or network of an entry, without brackets, and its ports."""
    bracketed = _V6.fullmatch(word)
    if bracketed:
        host, port = bracketed["inner"] + (bracketed["bits"] or ""), bracketed["port"]
    elif word.count(":") == 1:
        host, _, port = word.partition(":")
    else:
        host, port = word, None
    if port is None:
        return host, WEB_PORTS
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise _refusal(word, "has no port from 1 to 65535")
    return host, frozenset({int(port)})


def _network(host: str) -> Network | None:
    try:
        return ipaddress.ip_network(host)
    except ValueError:
        return None


def _refusal(word: str, why: str) -> ConfigError:
    shown = repr(word if len(word) <= 80 else word[:77] + "...")
    return ConfigError(
        f"media limit {FIELD} must be true, false or a list of host:port, address:port and "
        f"network/bits:port: {shown} {why}",
        FIELD,
    )
