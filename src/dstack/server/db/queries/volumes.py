"""Queries about volumes, their attachments, and the jobs that mount them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, exists, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.core.jobs import JobStatus
from dstack.server.db.tables import (
    FleetRow,
    InstanceRow,
    JobRow,
    JobVolumeRow,
    ProjectRow,
    UserRow,
    VolumeAttachmentRow,
    VolumeRow,
)

FINISHED_JOBS = tuple(status.value for status in JobStatus if status.is_finished())


class Attachment(NamedTuple):
    """A volume on an instance."""

    volume_id: UUID
    instance_id: UUID
    instance_name: str
    instance_num: int
    fleet_name: str | None
    is_used: bool
    """By an unfinished job."""


class MountedVolume(NamedTuple):
    """A volume as a job mounts it."""

    row: VolumeRow
    path: str


def volumes() -> Select[Unpack[tuple[Any, ...]]]:
    """The columns of `volumes`, `project_name` and `user_name`."""
    return (
        select(*VolumeRow.__table__.c, ProjectRow.name.label("project_name"), UserRow.name.label("user_name"))
        .select_from(VolumeRow)
        .join(ProjectRow, ProjectRow.id == VolumeRow.project_id)
        .join(UserRow, UserRow.id == VolumeRow.user_id)
    )


async def list_of_project(session: AsyncSession, project_id: UUID) -> Sequence[RowMapping]:
    """Newest first."""
    query = volumes().where(VolumeRow.project_id == project_id, VolumeRow.deleted.is_(False))
    query = query.order_by(VolumeRow.created_at.desc(), VolumeRow.id.desc())
    return (await session.execute(query)).mappings().all()


async def find_by_name(session: AsyncSession, project_id: UUID, name: str) -> RowMapping | None:
    where = (VolumeRow.project_id == project_id, VolumeRow.name == name, VolumeRow.deleted.is_(False))
    return (await session.execute(volumes().where(*where))).mappings().first()


async def list_attachments(session: AsyncSession, volume_ids: Sequence[UUID]) -> list[Attachment]:
    """Of all these volumes in one query."""
    unfinished = exists().where(
        JobVolumeRow.volume_id == VolumeAttachmentRow.volume_id,
        JobVolumeRow.job_id == JobRow.id,
        JobRow.instance_id == VolumeAttachmentRow.instance_id,
        JobRow.status.not_in(FINISHED_JOBS),
    )
    query = (
        select(
            VolumeAttachmentRow.volume_id,
            VolumeAttachmentRow.instance_id,
            InstanceRow.name,
            InstanceRow.instance_num,
            FleetRow.name,
            unfinished,
        )
        .join(InstanceRow, InstanceRow.id == VolumeAttachmentRow.instance_id)
        .outerjoin(FleetRow, FleetRow.id == InstanceRow.fleet_id)
        .where(VolumeAttachmentRow.volume_id.in_(volume_ids))
        .order_by(VolumeAttachmentRow.volume_id, InstanceRow.name)
    )
    return [Attachment(*row) for row in await session.execute(query)]


async def list_of_job(session: AsyncSession, job_id: UUID) -> list[MountedVolume]:
    query = select(VolumeRow, JobVolumeRow.path).join(JobVolumeRow, JobVolumeRow.volume_id == VolumeRow.id)
    rows = await session.execute(query.where(JobVolumeRow.job_id == job_id).order_by(JobVolumeRow.path))
    return [MountedVolume(row, path) for row, path in rows]


async def lock(session: AsyncSession, ids: Sequence[UUID]) -> list[VolumeRow]:
    """The rows, which no other transaction changes or attaches until this one ends."""
    query = select(VolumeRow).where(VolumeRow.id.in_(ids)).order_by(VolumeRow.id).with_for_update()
    return list(await session.scalars(query))
