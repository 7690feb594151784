"""The private hosts and ports that the setting allows, and refused values."""

from __future__ import annotations

import pytest

from metok_vllm.config.private_hosts import PrivateHosts
from metok_vllm.errors import ConfigError
from metok_vllm.video.limits import MediaLimits

LIST = (
    "10.1.0.0/16, 10.9.9.9:8080,192.168.0.0/24:9000, [::1]:8080,[fd00::]/8,[fd99::/16]:7000,"
    "fc01::2, minio.internal:9000, Media.Example.COM., localhost:8000"
)
OPEN = [
    ("any.example", 80, "10.1.2.3"),
    ("any.example", 443, "10.1.255.255"),
    ("any.example", 80, "::ffff:10.1.2.3"),
    ("x", 8080, "10.9.9.9"),
    ("x", 9000, "192.168.0.77"),
    ("x", 8080, "::1"),
    ("x", 443, "fd12::5"),
    ("x", 7000, "fd99::5"),
    ("x", 80, "fc01::2"),
    ("minio.internal", 9000, "172.16.0.1"),
    ("MINIO.internal.", 9000, "169.254.1.1"),
    ("media.example.com", 443, "10.200.0.1"),
    ("localhost", 8000, "127.0.0.1"),
    ("localhost", 8000, "::1"),
]
CLOSED = [
    ("x", 8080, "10.1.2.3"),
    ("x", 22, "10.1.2.3"),
    ("x", 80, "10.2.0.1"),
    ("x", 80, "10.9.9.9"),
    ("x", 8080, "10.9.9.8"),
    ("x", 80, "192.168.0.77"),
    ("x", 9000, "192.168.1.77"),
    ("x", 80, "::1"),
    ("x", 80, "::2"),
    ("x", 7000, "fd98::5"),
    ("x", 80, "64:ff9b::a01:203"),  # behind a NAT64 gateway 10.1.2.3 is another host
    ("x", 80, "2002:a01:203::1"),
    ("minio.internal", 80, "172.16.0.1"),
    ("sub.minio.internal", 9000, "172.16.0.1"),
    ("minio.internal.evil.example", 9000, "172.16.0.1"),
    ("xminio.internal", 9000, "172.16.0.1"),
    ("127.0.0.1", 8000, "127.0.0.1"),
    ("localhost", 80, "127.0.0.1"),
    ("localhost", 8001, "127.0.0.1"),
    ("x", 80, "fe80::1%eth0"),
]


@pytest.mark.parametrize(("host", "port", "address"), OPEN)
def test_listed_hosts_are_allowed(host: str, port: int, address: str) -> None:
    assert PrivateHosts.of(LIST).allow(host, port, address)
    assert PrivateHosts.of("true").allow(host, port, address)
    assert not PrivateHosts.of("false").allow(host, port, address)


@pytest.mark.parametrize(("host", "port", "address"), CLOSED)
def test_other_hosts_are_refused(host: str, port: int, address: str) -> None:
    assert not PrivateHosts.of(LIST).allow(host, port, address)
    assert PrivateHosts.of(True).allow(host, port, address)


BAD = [
    "minio",
    "10.1.2.3/8",
    "10.1.2.3:0",
    "10.1.2.3:65536",
    "10.1.2.3:http",
    "10.1.2:80",
    "300.1.2.3:80",
    "2130706433",
    "2130706433:80",
    "0.0.0.0/33",
    "[::1",
    "[::1]:",
    "::1:x",
    "http://minio.internal/",
    "minio.internal:9000/path",
    "user@minio.internal:80",
    "*.internal:80",
    "minio..internal:80",
    "-x.internal:80",
    "büro.internal:80",
    "a b:80",
    "10.1.0.0-10.2.0.0",
]


@pytest.mark.parametrize("entry", BAD)
def test_invalid_entries_are_named(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MediaLimits.from_env({"METOK_MEDIA_ALLOW_PRIVATE_HOSTS": f"10.0.0.1:80,{entry}"})
    assert repr(entry) in str(caught.value)
    assert caught.value.field == "allow_private_hosts"


def test_the_setting_is_hashable_and_normalised() -> None:
    limits = MediaLimits(allow_private_hosts="minio.internal:9000")
    assert hash(limits) == hash(MediaLimits(allow_private_hosts="minio.internal:9000"))
    assert MediaLimits(allow_private_hosts="on") == MediaLimits(allow_private_hosts=True)
    with pytest.raises(ConfigError) as caught:
        MediaLimits(allow_private_hosts="x" * 10_000)
    assert len(str(caught.value)) < 300
