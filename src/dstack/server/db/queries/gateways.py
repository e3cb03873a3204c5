"""Queries about gateways and their machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, or_, select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession
from typing_extensions import Unpack

from dstack.core.gateways import GatewayReplicaStatus
from dstack.server.db.queries import sharing
from dstack.server.db.tables import GatewayReplicaRow, GatewayRow, ProjectRow, RunRow
from dstack.server.db.tables.runs import RUN_IS_ACTIVE


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


async def list_published(session: AsyncSession, gateway_id: UUID) -> Sequence[Row[Unpack[tuple[Any, ...]]]]:
    """The services on a gateway that are not over, with the names of their projects."""
    query = (
        select(
            RunRow.id, RunRow.project_id, RunRow.run_name, RunRow.run_spec, RunRow.service_spec,
            ProjectRow.name.label("project_name"),
        )
        .join(ProjectRow, ProjectRow.id == RunRow.project_id)
        .where(RunRow.gateway_id == gateway_id, RunRow.service_spec.is_not(None), RUN_IS_ACTIVE)
        .order_by(RunRow.submitted_at, RunRow.id)
    )  # fmt: skip
    return (await session.execute(query)).all()


@dataclass(frozen=True)
class RunningReplica:
    """A machine of a gateway to be connected to."""

    id: UUID
    gateway_id: UUID


async def list_running_replicas(session: AsyncSession) -> list[RunningReplica]:
    """Of all gateways that are not to be deleted."""
    query = (
        select(GatewayReplicaRow.id, GatewayReplicaRow.gateway_id)
        .join(GatewayRow, GatewayRow.id == GatewayReplicaRow.gateway_id)
        .where(GatewayReplicaRow.status == GatewayReplicaStatus.RUNNING.value)
        .where(GatewayReplicaRow.ssh_target.is_not(None), GatewayRow.delete_requested.is_(False))
    )
    return [RunningReplica(*row) for row in await session.execute(query)]


async def set_gateway_errors(session: AsyncSession, errors: Mapping[UUID, str]) -> None:
    """Why runs are not published, by run."""
    for run_id, why in errors.items():
        await session.execute(update(RunRow).where(RunRow.id == run_id).values(gateway_error=why))
