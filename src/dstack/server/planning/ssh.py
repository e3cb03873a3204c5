"""What a host of an SSH fleet has to offer, from what its agent tells of it. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from dstack.core.backends import BackendType
from dstack.core.errors import HostUnfit
from dstack.core.instances import (
    Disk,
    Gpu,
    InstanceAvailability,
    InstanceOfferWithAvailability,
    InstanceType,
    Resources,
)
from dstack.core.resources import CPUArchitecture

REGION = "remote"
MIB = 2**20


def resources_of(host: Mapping[str, Any]) -> Resources:
    """`host`: `AgentInfo.host`."""
    arm = host["arch"].lower() in ("aarch64", "arm64")
    return Resources(
        cpus=host["cpus"],
        memory_mib=host["memory_bytes"] // MIB,
        gpus=[Gpu(name=gpu["name"], memory_mib=gpu["memory_mib"], vendor=gpu["vendor"]) for gpu in host["gpus"]],
        spot=False,
        disk=Disk(size_mib=host["disk_bytes"] // MIB),
        cpu_arch=CPUArchitecture.ARM if arm else CPUArchitecture.X86,
    )


def offer_of(resources: Resources, total_blocks: int) -> InstanceOfferWithAvailability:
    """The host itself, free of charge."""
    return InstanceOfferWithAvailability(
        backend=BackendType.REMOTE,
        instance=InstanceType(name="ssh", resources=resources),
        region=REGION,
        price=0.0,
        availability=InstanceAvailability.AVAILABLE,
        total_blocks=total_blocks,
    )


def internal_address(details: Mapping[str, Any], hostname: str, host: Mapping[str, Any]) -> str:
    """Where the other hosts of the fleet reach this one: as the file says, in the network that it names, or else
    at the address by which we reach it. Raises HostUnfit when it has no address in that network."""
    if details.get("internal_ip"):
        return str(details["internal_ip"])
    addresses: list[str] = list(host["addresses"])
    network = details.get("network")
    if network:
        inside = [one for one in addresses if ipaddress.ip_address(one) in ipaddress.ip_network(network)]
        if not inside:
            raise HostUnfit(f"{hostname} has no address in network {network}; it has {', '.join(addresses)}")
        return inside[0]
    if hostname in addresses or not addresses:
        return hostname
    return next((one for one in addresses if ipaddress.ip_address(one).is_private), addresses[0])
