"""Volumes as the placement knows them, and how it is recorded that a job has some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.jobs import JobTerminationReason
from dstack.core.volumes import VolumeStatus
from dstack.server.db.queries import volumes as queries
from dstack.server.db.tables import JobRow, JobVolumeRow, VolumeAttachmentRow
from dstack.server.orchestrator.decision import StaleSnapshot
from dstack.server.planning.volumes import KnownVolume, Mounted, Place


async def load(session: AsyncSession, project_id: UUID) -> dict[str, KnownVolume]:
    """All of the project, by name. Two queries."""
    rows = await queries.list_of_project(session, project_id)
    attachments = {
        one.volume_id: one for one in await queries.list_attachments(session, [row["id"] for row in rows])
    }
    known = {}
    for row in rows:
        attachment = attachments.get(row["id"])
        known[row["name"]] = KnownVolume(
            id=row["id"],
            name=row["name"],
            place=_place(row["backend"], row["configuration"], row["provisioning_data"]),
            problem=_problem(row["status"], row["status_message"], row["delete_requested"]),
            attached_to=None if attachment is None else attachment.instance_id,
            is_used=attachment is not None and attachment.is_used,
        )
    return known


def _place(backend: str | None, configuration: str, provisioning_data: str | None) -> Place | None:
    if backend is None or provisioning_data is None:
        return None
    disk = json.loads(provisioning_data)
    return Place(backend, json.loads(configuration).get("region") or "", disk.get("availability_zone") or "")


def _problem(status: str, message: str | None, delete_requested: bool) -> str | None:
    if delete_requested:
        return "it is being deleted"
    return f"it failed ({message})" if status == VolumeStatus.FAILED.value else None


def names(mounted: Sequence[Mounted]) -> tuple[str, ...]:
    """Of the volumes, each once."""
    return tuple(dict.fromkeys(one.volume.name for one in mounted))


async def record(session: AsyncSession, job_id: UUID, instance_id: UUID, mounted: Sequence[Mounted]) -> None:
    """Raises StaleSnapshot when one of the volumes is no longer to be had by the instance."""
    ids = sorted({one.volume.id for one in mounted})
    rows = await queries.lock(session, ids)
    if len(rows) != len(ids) or any(row.delete_requested or row.deleted for row in rows):
        raise StaleSnapshot
    attached = await queries.list_attachments(session, ids)
    if any(one.instance_id != instance_id or not one.is_used for one in attached):
        raise StaleSnapshot
    new = set(ids) - {one.volume_id for one in attached}
    if new:
        values = [{"volume_id": id, "instance_id": instance_id} for id in sorted(new)]
        await session.execute(insert(VolumeAttachmentRow), values)
    await session.execute(
        insert(JobVolumeRow),
        [{"job_id": job_id, "volume_id": one.volume.id, "path": one.path} for one in mounted],
    )


async def refuse(session: AsyncSession, job_ids: Sequence[UUID], error: str) -> None:
    """Has the jobs end, unless something else ends them already."""
    waiting = (JobRow.id.in_(job_ids), JobRow.instance_id.is_(None), JobRow.terminate_requested.is_(None))
    await session.execute(
        update(JobRow)
        .where(*waiting)
        .values(terminate_requested=JobTerminationReason.VOLUME_ERROR.value, termination_reason_message=error)
    )
