"""What is done about a volume: the backend makes, detaches and deletes it. All idempotent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import select

from dstack.backends.base import InstanceAddress, VolumeRequest, Volumes
from dstack.core.canonical import dump_json
from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.errors import BackendError, BackendNotAvailable
from dstack.core.volumes import VolumeProvisioningData
from dstack.server.db.tables import InstanceRow, ProjectRow, VolumeRow
from dstack.server.orchestrator.decision import Effect, EffectHandler, Facts, Key, TerminalEffectError
from dstack.server.orchestrator.volumes.rules import EnsureDeleted, EnsureDetached, EnsureVolume
from dstack.server.orchestrator.world import World

_CONFIGURATION: TypeAdapter[VolumeConfiguration] = TypeAdapter(VolumeConfiguration)


async def ensure_volume(effect: EnsureVolume, world: World, key: Key) -> Facts:
    """Its name is on record, so a call whose answer was lost is simply made again."""
    row, project_name = await _row(world, key)
    configuration = _CONFIGURATION.validate_json(row.configuration)
    type_name, volumes = await _backend_for(world, row, configuration.backend)
    request = VolumeRequest(disk_name(row.name, row.id), project_name, configuration)
    try:
        disk = await volumes.ensure_volume(request)
    except BackendError as error:
        if error.retryable:
            raise
        raise _failed(str(error)) from error
    return {} if disk is None else {"backend": type_name, "provisioning_data": dump_json(disk)}


def _failed(why: str) -> TerminalEffectError:
    return TerminalEffectError(why, {"failure": why})


async def _backend_for(world: World, row: VolumeRow, wire_type: str) -> tuple[str, Volumes]:
    """The project's backend that makes volumes of that configuration."""
    for backend in await world.backends.list_of_project(row.project_id):
        if backend.volumes is not None and backend.volumes.wire_type == wire_type:
            return backend.type, backend.volumes
    raise _failed(f"The project has no backend {wire_type!r} that makes volumes")


async def ensure_detached(effect: EnsureDetached, world: World, key: Key) -> Facts:
    """An instance without an address never had the disk; nor has one whose backend the project has given up."""
    row, _ = await _row(world, key)
    async with world.database.session() as session:
        address = await session.scalar(select(InstanceRow.address).where(InstanceRow.id == effect.instance_id))
    volumes = await _volumes_of(world, row)
    is_detached = True
    if address is not None and volumes is not None and row.provisioning_data is not None:
        disk = VolumeProvisioningData.model_validate_json(row.provisioning_data, extra="ignore")
        is_detached = await volumes.ensure_detached(disk, InstanceAddress(**json.loads(address)))
    return _with_detached(row, effect.instance_id) if is_detached else {}


def _with_detached(row: VolumeRow, instance_id: UUID) -> Facts:
    known = set(json.loads(row.detached_from or "[]")) | {str(instance_id)}
    return {"detached_from": json.dumps(sorted(known))}


async def ensure_deleted(effect: EnsureDeleted, world: World, key: Key) -> Facts:
    """True of the world once the backend says so; a disk of a backend that the project has given up is let go."""
    row, _ = await _row(world, key)
    volumes = await _volumes_of(world, row)
    if volumes is None:
        return {"is_gone": True}
    disk = row.provisioning_data
    known = None if disk is None else VolumeProvisioningData.model_validate_json(disk, extra="ignore")
    is_gone = await volumes.ensure_deleted(disk_name(row.name, row.id), known)
    return {"is_gone": True} if is_gone else {}


async def _volumes_of(world: World, row: VolumeRow) -> Volumes | None:
    """Of the backend that made the disk; while none is known to have, of the one that would have."""
    if row.backend is not None:
        try:
            return (await world.backends.get(row.project_id, row.backend)).volumes
        except BackendNotAvailable:
            return None
    try:
        return (await _backend_for(world, row, json.loads(row.configuration)["backend"]))[1]
    except TerminalEffectError:
        return None


def disk_name(name: str, id: UUID) -> str:
    """Unique in a backend that several projects or servers share, and never used twice."""
    return f"{name}-{id.hex[:8]}"


async def _row(world: World, key: Key) -> tuple[VolumeRow, str]:
    query = select(VolumeRow, ProjectRow.name).join(ProjectRow, ProjectRow.id == VolumeRow.project_id)
    async with world.database.session() as session:
        row, project_name = (await session.execute(query.where(VolumeRow.id == key.id))).one()
    return row, project_name


HANDLERS: Mapping[type[Effect], EffectHandler] = {
    EnsureVolume: ensure_volume,
    EnsureDetached: ensure_detached,
    EnsureDeleted: ensure_deleted,
}
