"""Volumes: disks that outlive the instances they are attached to. The orchestrator makes and removes them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.configurations.volume import VolumeConfiguration
from dstack.core.errors import InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.names import check_resource_name, random_name
from dstack.core.schemas.volumes import ListVolumesRequest
from dstack.core.volumes import Volume, VolumeStatus
from dstack.server import clock, events
from dstack.server.access import Caller
from dstack.server.db.engine import wake
from dstack.server.db.locks import one_at_a_time
from dstack.server.db.queries import paging
from dstack.server.db.queries import volumes as queries
from dstack.server.db.tables import VolumeRow
from dstack.server.operations import volume_answers
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.visibility import named_project_ids


async def list_volumes(ctx: Context, caller: Caller, page: ListVolumesRequest) -> list[Volume]:
    """A page of those of all projects of the caller, deleted ones too unless `only_active`; admins see all."""
    async with ctx.database.session() as session:
        query = queries.volumes()
        names = None if page.project_name is None else [page.project_name]
        projects = await named_project_ids(session, caller, names)
        if projects is not None:
            query = query.where(VolumeRow.project_id.in_(projects))
        if page.only_active:
            query = query.where(VolumeRow.deleted.is_(False), VolumeRow.status == VolumeStatus.ACTIVE.value)
        query = paging.page(
            query,
            VolumeRow.created_at,
            VolumeRow.id,
            after=paging.position(page.prev_created_at, page.prev_id),
            limit=page.limit,
            ascending=page.ascending,
        )
        return await volume_answers.load(session, (await session.execute(query)).mappings().all())


async def list_project_volumes(ctx: Context, at: InProject) -> list[Volume]:
    """Newest first."""
    async with ctx.database.session() as session:
        return await volume_answers.load(session, await queries.list_of_project(session, at.project.id))


async def get_volume(ctx: Context, at: InProject, name: str) -> Volume:
    """Raises ResourceNotExists."""
    async with ctx.database.session() as session:
        row = await queries.find_by_name(session, at.project.id, name)
        if row is None:
            raise ResourceNotExists(f"Volume {name!r} does not exist in project {at.project.name!r}")
        return (await volume_answers.load(session, [row]))[0]


async def create_volume(ctx: Context, at: InProject, configuration: VolumeConfiguration) -> Volume:
    """Submits a volume. Whether a backend makes it shows later, as its status. Raises ResourceExists."""
    _check(configuration)
    async with ctx.database.transaction() as session:
        # One at a time in a project, so that a name is given to one volume only.
        await one_at_a_time(session, f"names of volumes:{at.project.id}")
        if configuration.name is None:
            name = await _free_name(session, at.project.id)
            configuration = configuration.model_copy(update={"name": name})
        elif await queries.find_by_name(session, at.project.id, configuration.name) is not None:
            raise ResourceExists(f"Volume {configuration.name!r} exists in project {at.project.name!r} already")
        await _add(session, at, configuration)
    assert configuration.name is not None
    return await get_volume(ctx, at, configuration.name)


async def _add(session: AsyncSession, at: InProject, configuration: VolumeConfiguration) -> None:
    now, name = clock.now(), configuration.name
    assert name is not None
    row = VolumeRow(
        id=uuid.uuid4(),
        project_id=at.project.id,
        user_id=at.caller.user_id,
        name=name,
        created_at=now,
        last_processed_at=now,
        configuration=dump_json(configuration),
        is_external=_external_id(configuration) is not None,
        status=VolumeStatus.SUBMITTED.value,
    )
    session.add(row)
    await session.flush()
    await events.record(session, "Volume created", actor=at.caller.user_id, targets=[_target(row)])
    wake(session, f"volume:{row.id}")


def _check(configuration: VolumeConfiguration) -> None:
    """Raises InvalidRequest for what no backend could make."""
    if configuration.name is not None:
        try:
            check_resource_name(configuration.name, "volume")
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
    fields = type(configuration).model_fields
    if "size" not in fields:
        return
    size, external = getattr(configuration, "size", None), _external_id(configuration)
    id_field = "claim_name" if "claim_name" in fields else "volume_id"
    if size is None and external is None:
        raise InvalidRequest(f"A volume needs a `size`, such as `size: 100GB`, or the `{id_field}` of a disk")
    if size is not None and external is not None:
        raise InvalidRequest(f"A volume with `{id_field}` has the size of its disk: leave out `size`")


def _external_id(configuration: VolumeConfiguration) -> str | None:
    """Of a disk that is there already."""
    found = getattr(configuration, "volume_id", None) or getattr(configuration, "claim_name", None)
    return None if found is None else str(found)


async def _free_name(session: AsyncSession, project_id: UUID) -> str:
    chance = random.Random()
    while True:
        name = random_name(chance)
        if await queries.find_by_name(session, project_id, name) is None:
            return name


async def delete_volumes(ctx: Context, at: InProject, names: Iterable[str]) -> None:
    """All or none; unknown ones are ignored. Raises InvalidRequest while one is attached."""
    async with ctx.database.transaction() as session:
        for name in dict.fromkeys(names):
            found = await queries.find_by_name(session, at.project.id, name)
            if found is None:
                continue
            (row,) = await queries.lock(session, [found["id"]])
            if row.delete_requested:
                continue
            attached = await queries.list_attachments(session, [row.id])
            if attached:
                where = ", ".join(one.instance_name for one in attached)
                raise InvalidRequest(f"Volume {name!r} is attached to {where}; stop the runs that use it first")
            row.delete_requested = True
            message = "Volume deletion requested"
            await events.record(session, message, actor=at.caller.user_id, targets=[_target(row)])
            wake(session, f"volume:{row.id}")


def _target(row: VolumeRow) -> events.Target:
    return events.Target(EventTargetType.VOLUME.value, row.id, row.name, row.project_id)
