"""Queries about instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.core.backends import LOCAL
from dstack.server.db.queries import sharing
from dstack.server.db.queries.metrics import LIVE_JOBS
from dstack.server.db.queries.paging import page
from dstack.server.db.tables import FleetRow, InstanceRow, JobRow, ProjectRow


@dataclass(frozen=True)
class InstanceFilter:
    """Which instances to list; None leaves a field open."""

    project_ids: Sequence[UUID] | None = None
    fleet_ids: Sequence[UUID] | None = None
    only_active: bool = False
    imported_by: Select[UUID] | None = None
    """Projects, the instances of whose imported fleets are listed too."""
    before: tuple[datetime, UUID | None] | None = None
    """The last one of the page before, by (created_at, id)."""
    ascending: bool = False
    limit: int = 100


def _instances() -> Select[Unpack[tuple[Any, ...]]]:
    return (
        select(
            *InstanceRow.__table__.c,
            ProjectRow.name.label("project_name"),
            FleetRow.name.label("fleet_name"),
        )
        .select_from(InstanceRow)
        .join(ProjectRow, ProjectRow.id == InstanceRow.project_id)
        .outerjoin(FleetRow, FleetRow.id == InstanceRow.fleet_id)
    )


async def list_page(session: AsyncSession, wanted: InstanceFilter) -> Sequence[RowMapping]:
    """One query: the columns of `instances` plus `project_name`, `fleet_name`."""
    query = _instances()
    if wanted.project_ids is not None:
        may_see: ColumnElement[bool] = InstanceRow.project_id.in_(wanted.project_ids)
        if wanted.imported_by is not None:
            may_see = or_(may_see, InstanceRow.fleet_id.in_(sharing.imported_by(wanted.imported_by)))
        query = query.where(may_see)
    if wanted.fleet_ids is not None:
        query = query.where(InstanceRow.fleet_id.in_(wanted.fleet_ids))
    if wanted.only_active:
        query = query.where(InstanceRow.deleted.is_(False), InstanceRow.status != "terminated")
    query = page(
        query,
        InstanceRow.created_at,
        InstanceRow.id,
        after=wanted.before,
        limit=wanted.limit,
        ascending=wanted.ascending,
    )
    return (await session.execute(query)).mappings().all()


async def find_by_id(session: AsyncSession, project_id: UUID, id: UUID) -> RowMapping | None:
    """The columns of `instances` plus `project_name`, `fleet_name`."""
    query = _instances().where(InstanceRow.project_id == project_id, InstanceRow.id == id)
    return (await session.execute(query)).mappings().first()


async def find_by_name(
    session: AsyncSession, project_id: UUID, fleet_id: UUID | None, name: str
) -> InstanceRow | None:
    query = select(InstanceRow).where(
        InstanceRow.project_id == project_id, InstanceRow.name == name, InstanceRow.deleted.is_(False)
    )
    if fleet_id is not None:
        query = query.where(InstanceRow.fleet_id == fleet_id)
    return await session.scalar(query.limit(1))


async def count_own_gpus(session: AsyncSession) -> int:
    """How many GPUs of the server's own machine unfinished jobs were given, those of all projects together."""
    own = select(InstanceRow.id).where(InstanceRow.backend == LOCAL)
    given = select(func.sum(JobRow.gpus)).where(JobRow.instance_id.in_(own), JobRow.status.in_(LIVE_JOBS))
    return await session.scalar(given) or 0
