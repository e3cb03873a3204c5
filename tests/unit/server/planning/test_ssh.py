"""What a host of an SSH fleet has to offer, and where the others reach it."""

from __future__ import annotations

from typing import Any

import pytest

from dstack.core.errors import HostUnfit
from dstack.core.resources import CPUArchitecture
from dstack.server.planning.ssh import MIB, internal_address, offer_of, resources_of

HOST: dict[str, Any] = {
    "arch": "x86_64",
    "cpus": 16,
    "memory_bytes": 64 * 1024 * MIB + 5,
    "disk_bytes": 100 * 1024 * MIB,
    "gpus": [{"name": "A100", "memory_mib": 40960, "vendor": "nvidia"}] * 2,
    "addresses": ["52.1.2.3", "10.0.0.5", "192.168.1.5", "fd00::5"],
}


def test_resources_are_those_that_the_agent_tells_of() -> None:
    found = resources_of(HOST)
    assert (found.cpus, found.memory_mib, found.disk.size_mib, found.spot) == (16, 65536, 102400, False)
    assert [(gpu.name, gpu.memory_mib) for gpu in found.gpus] == [("A100", 40960)] * 2


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("x86_64", CPUArchitecture.X86),
        ("amd64", CPUArchitecture.X86),
        ("aarch64", CPUArchitecture.ARM),
        ("ARM64", CPUArchitecture.ARM),
    ],
)
def test_the_architecture_has_one_name(arch: str, expected: CPUArchitecture) -> None:
    assert resources_of({**HOST, "arch": arch}).cpu_arch is expected


def test_a_host_is_offered_free_of_charge() -> None:
    offer = offer_of(resources_of(HOST), 2)
    assert offer.availability.is_available()
    shown = offer.model_dump(mode="json")
    assert {name: shown[name] for name in ("backend", "region", "price", "total_blocks")} == {
        "backend": "remote",
        "region": "remote",
        "price": 0.0,
        "total_blocks": 2,
    }


@pytest.mark.parametrize(
    ("details", "hostname", "addresses", "expected"),
    [
        ({"internal_ip": "10.9.9.9", "network": None}, "52.1.2.3", HOST["addresses"], "10.9.9.9"),
        ({"network": "192.168.0.0/16"}, "52.1.2.3", HOST["addresses"], "192.168.1.5"),
        ({"network": "fd00::/8"}, "52.1.2.3", HOST["addresses"], "fd00::5"),
        ({}, "52.1.2.3", HOST["addresses"], "52.1.2.3"),
        ({}, "gpu1.example.com", HOST["addresses"], "10.0.0.5"),
        ({}, "gpu1.example.com", ["198.51.100.1"], "198.51.100.1"),
        ({}, "gpu1.example.com", [], "gpu1.example.com"),
    ],
)
def test_where_the_other_hosts_reach_it(
    details: dict[str, Any], hostname: str, addresses: list[str], expected: str
) -> None:
    assert internal_address(details, hostname, {**HOST, "addresses": addresses}) == expected


def test_a_host_outside_the_network_is_unfit() -> None:
    with pytest.raises(HostUnfit, match=r"gpu1 has no address in network 172.16.0.0/12; it has 52.1.2.3, 10"):
        internal_address({"network": "172.16.0.0/12"}, "gpu1", HOST)
