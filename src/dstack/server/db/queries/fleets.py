"""Queries about fleets and their instances."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.server.db.queries import sharing
from dstack.server.db.queries.paging import page
from dstack.server.db.tables import FleetRow, InstanceRow, ProjectRow


def _fleets() -> Select[Unpack[tuple[Any, ...]]]:
    return (
        select(*FleetRow.__table__.c, ProjectRow.name.label("project_name"))
        .select_from(FleetRow)
        .join(ProjectRow, ProjectRow.id == FleetRow.project_id)
    )


async def list_of_project(
    session: AsyncSession, project_id: UUID, *, only_active: bool = False, with_imported: bool = False
) -> Sequence[RowMapping]:
    """Columns of `fleets` plus `project_name`, oldest first, its own ones before those that it imports."""
    query = _fleets().where(FleetRow.deleted.is_(False))
    may_use = FleetRow.project_id == project_id
    if with_imported:
        may_use = or_(may_use, FleetRow.id.in_(sharing.imported_fleet_ids(project_id)))
    query = query.where(may_use)
    if only_active:
        query = query.where(FleetRow.status != "terminated")
    query = query.order_by(FleetRow.project_id != project_id, FleetRow.created_at, FleetRow.id)
    return (await session.execute(query)).mappings().all()


async def list_page(
    session: AsyncSession,
    project_ids: Sequence[UUID] | None,
    *,
    only_active: bool = False,
    imported_by: Select[UUID] | None = None,
    before: tuple[datetime, UUID | None] | None = None,
    ascending: bool = False,
    limit: int = 100,
) -> Sequence[RowMapping]:
    """Columns of `fleets` plus `project_name`, newest first unless `ascending`; deleted ones too unless
    `only_active`. `before`: (created_at, id) of the last one of the page before. `imported_by`: projects whose
    imports are listed too."""
    query = _fleets()
    if project_ids is not None:
        may_see: ColumnElement[bool] = FleetRow.project_id.in_(project_ids)
        if imported_by is not None:
            may_see = or_(may_see, FleetRow.id.in_(sharing.imported_by(imported_by)))
        query = query.where(may_see)
    if only_active:
        query = query.where(FleetRow.deleted.is_(False))
    query = page(query, FleetRow.created_at, FleetRow.id, after=before, limit=limit, ascending=ascending)
    return (await session.execute(query)).mappings().all()


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
