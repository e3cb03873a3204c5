"""Queries about what projects share with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from dstack.core.jobs import JobStatus, JobTerminationReason
from dstack.server.db.tables import (
    ExportedFleetRow,
    ExportedGatewayRow,
    ExportRow,
    FleetRow,
    GatewayRow,
    ImportRow,
    JobRow,
    ProjectRow,
)

FINISHED_JOBS = tuple(status.value for status in JobStatus if status.is_finished())


class Named(NamedTuple):
    """A shared fleet or gateway, or a project that uses an export."""

    id: UUID
    name: str


def imported_fleet_ids(project_id: UUID | Any) -> Select[UUID]:
    """Of the fleets of other projects that the project may use; `project_id` may be a column."""
    return (
        select(ExportedFleetRow.fleet_id)
        .join(ExportRow, ExportRow.id == ExportedFleetRow.export_id)
        .where(_is_importer(project_id))
    )


def imported_gateway_ids(project_id: UUID | Any) -> Select[UUID]:
    """Of the gateways of other projects that the project may use."""
    return (
        select(ExportedGatewayRow.gateway_id)
        .join(ExportRow, ExportRow.id == ExportedGatewayRow.export_id)
        .where(_is_importer(project_id))
    )


def imported_by(project_ids: Select[UUID]) -> Select[UUID]:
    """Of the fleets that any of the projects imports."""
    return (
        select(ExportedFleetRow.fleet_id)
        .join(ExportRow, ExportRow.id == ExportedFleetRow.export_id)
        .outerjoin(ImportRow, ImportRow.export_id == ExportRow.id)
        .where(or_(ExportRow.is_global.is_(True), ImportRow.project_id.in_(project_ids)))
    )


def gateways_imported_by(project_ids: Select[UUID]) -> Select[UUID]:
    """Of the gateways that any of the projects imports."""
    return (
        select(ExportedGatewayRow.gateway_id)
        .join(ExportRow, ExportRow.id == ExportedGatewayRow.export_id)
        .outerjoin(ImportRow, ImportRow.export_id == ExportRow.id)
        .where(or_(ExportRow.is_global.is_(True), ImportRow.project_id.in_(project_ids)))
    )


def _is_importer(project_id: UUID | Any) -> ColumnElement[bool]:
    user = aliased(ImportRow)
    imported = exists().where(user.export_id == ExportRow.id, user.project_id == project_id)
    return and_(ExportRow.project_id != project_id, or_(ExportRow.is_global.is_(True), imported))


async def list_importers(session: AsyncSession, fleet_id: UUID) -> list[UUID]:
    """The other projects that may use the fleet."""
    query = (
        select(ExportRow.project_id, ExportRow.is_global, ImportRow.project_id)
        .join(ExportedFleetRow, ExportedFleetRow.export_id == ExportRow.id)
        .outerjoin(ImportRow, ImportRow.export_id == ExportRow.id)
        .where(ExportedFleetRow.fleet_id == fleet_id)
    )
    rows = (await session.execute(query)).all()
    if any(is_global for _, is_global, _ in rows):
        others = (ProjectRow.deleted.is_(False), ProjectRow.id != rows[0][0])
        return list(await session.scalars(select(ProjectRow.id).where(*others)))
    return [importer for _, _, importer in rows if importer is not None]


async def list_exports(session: AsyncSession, project_id: UUID) -> list[ExportRow]:
    """By name."""
    query = select(ExportRow).where(ExportRow.project_id == project_id).order_by(ExportRow.name)
    return list(await session.scalars(query))


async def find_export(session: AsyncSession, project_id: UUID, name: str) -> ExportRow | None:
    where = (ExportRow.project_id == project_id, ExportRow.name == name)
    return await session.scalar(select(ExportRow).where(*where))


class Import(NamedTuple):
    """An export that a project uses; `id` is of the export where all projects do."""

    id: UUID
    export: ExportRow
    project_name: str


async def list_imports(session: AsyncSession, project_id: UUID) -> list[Import]:
    """By the names of project and export."""
    mine = and_(ImportRow.export_id == ExportRow.id, ImportRow.project_id == project_id)
    query = (
        select(ImportRow.id, ExportRow, ProjectRow.name)
        .select_from(ExportRow)
        .join(ProjectRow, ProjectRow.id == ExportRow.project_id)
        .outerjoin(ImportRow, mine)
        .where(_is_importer(project_id), ProjectRow.deleted.is_(False))
        .order_by(ProjectRow.name, ExportRow.name)
    )
    return [Import(id or export.id, export, name) for id, export, name in await session.execute(query)]


async def list_fleets(session: AsyncSession, export_ids: Sequence[UUID]) -> dict[UUID, list[Named]]:
    """Of all these exports in one query."""
    query = (
        select(ExportedFleetRow.export_id, FleetRow.id, FleetRow.name)
        .join(FleetRow, FleetRow.id == ExportedFleetRow.fleet_id)
        .where(ExportedFleetRow.export_id.in_(export_ids), FleetRow.deleted.is_(False))
    )
    return _grouped(export_ids, (await session.execute(query.order_by(FleetRow.name))).all())


async def list_gateways(session: AsyncSession, export_ids: Sequence[UUID]) -> dict[UUID, list[Named]]:
    """Of all these exports in one query."""
    query = (
        select(ExportedGatewayRow.export_id, GatewayRow.id, GatewayRow.name)
        .join(GatewayRow, GatewayRow.id == ExportedGatewayRow.gateway_id)
        .where(ExportedGatewayRow.export_id.in_(export_ids), GatewayRow.deleted.is_(False))
    )
    return _grouped(export_ids, (await session.execute(query.order_by(GatewayRow.name))).all())


async def list_importing(session: AsyncSession, export_ids: Sequence[UUID]) -> dict[UUID, list[Named]]:
    """The projects that were named as users of these exports, in one query."""
    query = (
        select(ImportRow.export_id, ProjectRow.id, ProjectRow.name)
        .join(ProjectRow, ProjectRow.id == ImportRow.project_id)
        .where(ImportRow.export_id.in_(export_ids), ProjectRow.deleted.is_(False))
    )
    return _grouped(export_ids, (await session.execute(query.order_by(ProjectRow.name))).all())


def _grouped(ids: Sequence[UUID], rows: Sequence[Any]) -> dict[UUID, list[Named]]:
    found: dict[UUID, list[Named]] = {id: [] for id in ids}
    for export_id, id, name in rows:
        found[export_id].append(Named(id, name))
    return found


async def revoke(session: AsyncSession, fleet_ids: Sequence[UUID]) -> list[UUID]:
    """Has the jobs end that are on these fleets without their projects being allowed to be; answers their ids."""
    foreign = (
        select(JobRow.id)
        .join(FleetRow, FleetRow.id == JobRow.fleet_id)
        .where(
            JobRow.fleet_id.in_(fleet_ids),
            JobRow.project_id != FleetRow.project_id,
            JobRow.status.not_in(FINISHED_JOBS),
            JobRow.terminate_requested.is_(None),
            JobRow.fleet_id.not_in(imported_fleet_ids(JobRow.project_id)),
        )
    )
    ids = list(await session.scalars(foreign))
    values = {
        "terminate_requested": JobTerminationReason.INSTANCE_ACCESS_REVOKED.value,
        "termination_reason_message": "The fleet is no longer shared with this project",
    }
    await session.execute(update(JobRow).where(JobRow.id.in_(ids)).values(values))
    return ids
