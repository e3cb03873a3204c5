"""The volumes of a job, attached to its instance before it starts."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from dstack.backends.base import InstanceAddress
from dstack.core.errors import BackendError, BackendNotAvailable, BackendUnavailable, DstackError
from dstack.core.volumes import VolumeProvisioningData
from dstack.server.db.queries import volumes as queries
from dstack.server.db.tables import VolumeRow
from dstack.server.orchestrator.world import World


class VolumeNotAttached(DstackError):
    """A volume of the job can never be had by its instance."""


async def attach_volumes(world: World, job_id: UUID, address: str) -> tuple[dict[str, Any], ...]:
    """The mounts of its task. Raises VolumeNotAttached; BackendUnavailable when it is to be tried again."""
    async with world.database.session() as session:
        mounted = await queries.list_of_job(session, job_id)
    mounts = []
    for row, path in mounted:
        host_path = await _attach(world, row, InstanceAddress(**json.loads(address)))
        mounts.append({"host_path": host_path, "path": path, "optional": False})
    return tuple(mounts)


async def _attach(world: World, row: VolumeRow, instance: InstanceAddress) -> str:
    """Where the volume is on the host."""
    if row.provisioning_data is None or row.backend is None:
        raise VolumeNotAttached(f"Volume {row.name} has no disk")
    disk = VolumeProvisioningData.model_validate_json(row.provisioning_data, extra="ignore")
    try:
        volumes = (await world.backends.get(row.project_id, row.backend)).volumes
        if volumes is None:
            raise VolumeNotAttached(f"Backend {row.backend} no longer has volumes")
        attached = await volumes.ensure_attached(disk, instance)
    except (BackendError, BackendNotAvailable) as error:
        if error.retryable:
            raise
        raise VolumeNotAttached(f"Volume {row.name} cannot be attached: {error}") from error
    if attached is None:
        raise BackendUnavailable(f"Volume {row.name} is being attached")
    return attached.host_path
