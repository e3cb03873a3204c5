"""Queries about gateways and their machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Select, or_, select
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.server.db.queries import sharing
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow, ProjectRow


def _gateways() -> Select[Unpack[tuple[Any, ...]]]:
    return (
        select(*GatewayRow.__table__.c, ProjectRow.name.label("project_name"))
        .select_from(GatewayRow)
        .join(ProjectRow, ProjectRow.id == GatewayRow.project_id)
        .where(GatewayRow.deleted.is_(False))
    )


async def list_of_project(
    session: AsyncSession, project_id: UUID, *, with_imported: bool = False
) -> Sequence[RowMapping]:
    """Columns of `gateways` plus `project_name`, newest first, its own ones before those that it imports."""
    may_use = GatewayRow.project_id == project_id
    if with_imported:
        may_use = or_(may_use, GatewayRow.id.in_(sharing.imported_gateway_ids(project_id)))
    order = (GatewayRow.project_id != project_id, GatewayRow.created_at.desc(), GatewayRow.id.desc())
    return (await session.execute(_gateways().where(may_use).order_by(*order))).mappings().all()


async def find_by_name(session: AsyncSession, project_id: UUID, name: str) -> RowMapping | None:
    query = _gateways().where(GatewayRow.project_id == project_id, GatewayRow.name == name)
    return (await session.execute(query)).mappings().first()


async def list_replicas(session: AsyncSession, gateway_ids: Sequence[UUID]) -> dict[UUID, list[GatewayReplicaRow]]:
    """Of all these gateways in one query, those that are not terminated."""
    found: dict[UUID, list[GatewayReplicaRow]] = {id: [] for id in gateway_ids}
    living = (GatewayReplicaRow.gateway_id.in_(gateway_ids), GatewayReplicaRow.status != "terminated")
    query = select(GatewayReplicaRow).where(*living).order_by(GatewayReplicaRow.replica_num)
    for row in await session.scalars(query):
        found[row.gateway_id].append(row)
    return found
