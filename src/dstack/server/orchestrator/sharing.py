"""Waking those who wait for fleets that their projects share with others."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.server.db.engine import wake
from dstack.server.db.queries import sharing
from dstack.server.db.tables import ExportedFleetRow, InstanceRow


async def wake_sharers(session: AsyncSession, instance_id: UUID) -> None:
    """The queues of all projects that may use the instance, when its fleet is shared. Mostly one query."""
    query = select(InstanceRow.project_id, InstanceRow.fleet_id).join(
        ExportedFleetRow, ExportedFleetRow.fleet_id == InstanceRow.fleet_id
    )
    shared = (await session.execute(query.where(InstanceRow.id == instance_id).limit(1))).first()
    if shared is None or shared.fleet_id is None:
        return
    projects = [shared.project_id, *await sharing.list_importers(session, shared.fleet_id)]
    wake(session, *(f"placement:{id}" for id in projects))
