"""What the API shows of where a job runs, as column values of its row. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dstack.core.canonical import dump_json
from dstack.core.instances import InstanceOfferWithAvailability
from dstack.core.jobs import JobProvisioningData, JobRuntimeData, NetworkMode
from dstack.server.planning.matching import share_of


@dataclass(frozen=True)
class Held:
    """How much of an instance a job was given."""

    blocks: int
    total_blocks: int
    gpus: int | None = None
    """None: those of its blocks."""


def placed_values(
    name: str,
    offer: InstanceOfferWithAvailability,
    address: Mapping[str, Any],
    held: Held,
    *,
    is_local: bool,
    volume_names: Sequence[str] = (),
    task: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`name`: the instance's; `address`: its `InstanceAddress` as far as known; `task`: what the agent says of
    a running one (`ports` by port of the job, `working_dir`, `username`)."""
    blocks, total_blocks = held.blocks, held.total_blocks
    provisioning = JobProvisioningData(
        backend=offer.backend,
        instance_type=offer.instance,
        instance_id=address.get("backend_id") or name,
        hostname=address.get("hostname"),
        internal_ip=address.get("internal_ip"),
        region=offer.region,
        price=offer.price * blocks / max(total_blocks, 1),
        username=address.get("username") or "root",
        ssh_port=address.get("ssh_port"),
        dockerized=True,
    )
    resources = offer.instance.resources
    is_whole = blocks >= total_blocks or is_local
    share = None if is_whole else share_of(resources, blocks, total_blocks).resources
    runtime = JobRuntimeData(
        network_mode=NetworkMode.HOST if is_whole else NetworkMode.BRIDGE,
        gpu=held.gpus if is_local and held.gpus is not None else len((share or resources).gpus),
        cpu=None if share is None else share.cpus,
        memory=None if share is None else share.memory_mib / 1024,
        volume_names=list(volume_names),
        offer=offer.model_copy(update={"blocks": blocks, "total_blocks": total_blocks}),
        **(task or {}),
    )
    return {"provisioning_data": dump_json(provisioning), "runtime_data": dump_json(runtime)}
