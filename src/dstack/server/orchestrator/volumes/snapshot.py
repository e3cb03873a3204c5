"""What is known of a volume, and what is recorded beside a change of its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.events import EventTargetType
from dstack.server.db.queries import volumes as queries
from dstack.server.db.tables import VolumeAttachmentRow, VolumeRow
from dstack.server.orchestrator import told
from dstack.server.orchestrator.decision import Decision, Effect, EffectHandler, Kind, StaleSnapshot
from dstack.server.orchestrator.volumes import effects, rules
from dstack.server.orchestrator.volumes.rules import (
    AttachmentFacts,
    DropAttachments,
    RequestDeletion,
    VolumeSnapshot,
    VolumeState,
)


class VolumeKind:
    """See `decision.ResourceKind`."""

    kind = Kind.VOLUME
    effects: Mapping[type[Effect], EffectHandler] = effects.HANDLERS

    async def load(self, session: AsyncSession, id: UUID) -> VolumeSnapshot | None:
        """Two queries."""
        row = await session.get(VolumeRow, id)
        if row is None:
            return None
        found = await queries.list_attachments(session, [id])
        detached = set(json.loads(row.detached_from or "[]"))
        attachments = tuple(
            AttachmentFacts(one.instance_id, one.is_used, str(one.instance_id) in detached) for one in found
        )
        return _snapshot(row, attachments)

    def decide(self, snapshot: VolumeSnapshot, now: datetime) -> Decision[VolumeState]:
        return rules.decide(snapshot, now)

    async def record(
        self, session: AsyncSession, snapshot: VolumeSnapshot, decision: Decision[Any], now: datetime
    ) -> None:
        """This row, its attachments, and one event."""
        values: dict[str, Any] = {}
        for write in decision.writes:
            match write:
                case DropAttachments(instance_ids):
                    await _drop(session, snapshot, instance_ids)
                    values["detached_from"] = None
                case RequestDeletion():
                    values["delete_requested"] = await _is_free(session, snapshot)
        status = decision.status
        if status is not snapshot.status:
            if status is VolumeState.FAILED:
                values["status_message"] = decision.message
            if status is VolumeState.DELETED:
                values |= {"deleted": True, "deleted_at": now}
            await _tell(session, snapshot, decision)
        if values:
            await session.execute(update(VolumeRow).where(VolumeRow.id == snapshot.id).values(**values))

    def priority(self, snapshot: VolumeSnapshot) -> int:
        return 0


def _snapshot(row: VolumeRow, attachments: tuple[AttachmentFacts, ...]) -> VolumeSnapshot:
    cleanup = json.loads(row.configuration).get("auto_cleanup_duration")
    return VolumeSnapshot(
        id=row.id,
        project_id=row.project_id,
        name=row.name,
        status=VolumeState(row.status),
        idle_since=row.last_job_processed_at or row.created_at,
        is_external=row.is_external,
        has_disk=row.provisioning_data is not None,
        failure=row.failure,
        attachments=attachments,
        cleanup_after=None if cleanup is None or cleanup <= 0 else timedelta(seconds=cleanup),
        delete_requested=row.delete_requested,
        is_gone=row.is_gone,
    )


async def _drop(session: AsyncSession, volume: VolumeSnapshot, instance_ids: tuple[UUID, ...]) -> None:
    """Raises StaleSnapshot when a job was given the volume on one of the instances in the meantime."""
    await queries.lock(session, [volume.id])
    found = await queries.list_attachments(session, [volume.id])
    if any(one.is_used and one.instance_id in instance_ids for one in found):
        await session.execute(update(VolumeRow).where(VolumeRow.id == volume.id).values(detached_from=None))
        raise StaleSnapshot
    which = (VolumeAttachmentRow.volume_id == volume.id, VolumeAttachmentRow.instance_id.in_(instance_ids))
    await session.execute(delete(VolumeAttachmentRow).where(*which))


async def _is_free(session: AsyncSession, volume: VolumeSnapshot) -> bool:
    """Raises StaleSnapshot when it is not."""
    await queries.lock(session, [volume.id])
    if await queries.list_attachments(session, [volume.id]):
        raise StaleSnapshot
    return True


async def _tell(session: AsyncSession, volume: VolumeSnapshot, decision: Decision[Any]) -> None:
    text = told.change("Volume", volume.status.value, decision.status.value, message=decision.message)
    if decision.status is VolumeState.DELETED:
        text = "Volume deleted"
    target = told.target(EventTargetType.VOLUME, volume.id, volume.name, volume.project_id)
    await told.record(session, text, target)


KIND = VolumeKind()
