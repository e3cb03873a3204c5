"""Queries about fleets and their instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.server.db.tables import FleetRow, InstanceRow, ProjectRow


def _fleets() -> Select[Unpack[tuple[Any, ...]]]:
    return (
        select(*FleetRow.__table__.c, ProjectRow.name.label("project_name"))
        .select_from(FleetRow)
        .join(ProjectRow, ProjectRow.id == FleetRow.project_id)
    )


async def list_of_projects(
    session: AsyncSession, project_ids: Sequence[UUID] | None, *, only_active: bool = False
) -> Sequence[RowMapping]:
    """Columns of `fleets` plus `project_name`, oldest first. None: of all projects."""
    query = _fleets().where(FleetRow.deleted.is_(False))
    if project_ids is not None:
        query = query.where(FleetRow.project_id.in_(project_ids))
    if only_active:
        query = query.where(FleetRow.status != "terminated")
    query = query.order_by(FleetRow.created_at, FleetRow.id)
    return (await session.execute(query)).mappings().all()


async def list_page(
    session: AsyncSession,
    project_ids: Sequence[UUID] | None,
    *,
    only_active: bool = False,
    before: tuple[datetime, UUID | None] | None = None,
    ascending: bool = False,
    limit: int = 100,
) -> Sequence[RowMapping]:
    """Columns of `fleets` plus `project_name`, newest first unless `ascending`; deleted ones too unless
    `only_active`. `before`: (created_at, id) of the last one of the page before."""
    query = _fleets()
    if project_ids is not None:
        query = query.where(FleetRow.project_id.in_(project_ids))
    if only_active:
        query = query.where(FleetRow.deleted.is_(False))
    at, id_ = FleetRow.created_at, FleetRow.id
    if before is not None:
        last_at, last_id = before
        further = at > last_at if ascending else at < last_at
        if last_id is not None:
            beyond = id_ > last_id if ascending else id_ < last_id
            further = or_(further, and_(at == last_at, beyond))
        query = query.where(further)
    order = (at.asc(), id_.asc()) if ascending else (at.desc(), id_.desc())
    return (await session.execute(query.order_by(*order).limit(limit))).mappings().all()


async def find_by_name(session: AsyncSession, project_id: UUID, name: str) -> RowMapping | None:
    where = (FleetRow.project_id == project_id, FleetRow.name == name, FleetRow.deleted.is_(False))
    return (await session.execute(_fleets().where(*where))).mappings().first()


async def find_by_id(session: AsyncSession, project_id: UUID, fleet_id: UUID) -> RowMapping | None:
    query = _fleets().where(FleetRow.project_id == project_id, FleetRow.id == fleet_id)
    return (await session.execute(query)).mappings().first()


async def list_instances(session: AsyncSession, fleet_ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """Columns of `instances` of all these fleets in one query, by fleet and number; deleted ones left out."""
    if not fleet_ids:
        return []
    query = select(*InstanceRow.__table__.c)
    query = query.where(InstanceRow.fleet_id.in_(fleet_ids), InstanceRow.deleted.is_(False))
    query = query.order_by(InstanceRow.fleet_id, InstanceRow.instance_num, InstanceRow.created_at)
    return (await session.execute(query)).mappings().all()
