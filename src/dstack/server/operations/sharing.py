"""Fleets and gateways that a project shares with others: exports of the one, imports of the other."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.errors import InvalidRequest, ResourceExists, ResourceNotExists
from dstack.core.exports import (
    Export,
    ExportedFleet,
    ExportedGateway,
    ExportImport,
    Import,
    ImportExport,
    ImportExportedFleet,
    ImportExportedGateway,
)
from dstack.core.names import check_resource_name
from dstack.core.schemas.exports import CreateExportRequest, UpdateExportRequest
from dstack.server import clock, events
from dstack.server.db.engine import wake
from dstack.server.db.locks import one_at_a_time
from dstack.server.db.queries import sharing as queries
from dstack.server.db.tables import (
    ExportedFleetRow,
    ExportedGatewayRow,
    ExportRow,
    FleetRow,
    GatewayRow,
    ImportRow,
    ProjectRow,
)
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.projects import project_target


async def list_exports(ctx: Context, at: InProject) -> list[Export]:
    """By name."""
    async with ctx.database.session() as session:
        return await _to_exports(session, await queries.list_exports(session, at.project.id))


async def create_export(ctx: Context, at: InProject, wanted: CreateExportRequest) -> Export:
    """What is shared must be the project's own. Raises ResourceExists, ResourceNotExists."""
    try:
        check_resource_name(wanted.name, "export")
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    async with ctx.database.transaction() as session:
        await one_at_a_time(session, f"names of exports:{at.project.id}")
        if await queries.find_export(session, at.project.id, wanted.name) is not None:
            raise ResourceExists(f"Export {wanted.name!r} exists in project {at.project.name!r} already")
        now = clock.now()
        row = ExportRow(
            id=uuid.uuid4(),
            project_id=at.project.id,
            name=wanted.name,
            is_global=wanted.is_global,
            created_at=now,
        )
        session.add(row)
        await session.flush()
        change = _Change(session, at, row)
        await change.add_importers(wanted.importer_projects)
        await change.add_fleets(wanted.exported_fleets)
        await change.add_gateways(wanted.exported_gateways)
        await _settle(session, at, row, f"Export {row.name} created", await _fleet_ids(session, row))
        return (await _to_exports(session, [row]))[0]


async def update_export(ctx: Context, at: InProject, wanted: UpdateExportRequest) -> Export:
    """Who loses what is shared has the jobs end that use it. Raises ResourceNotExists."""
    if wanted.set_global and wanted.unset_global:
        raise InvalidRequest("An export is either for all projects or for some: `set_global` or `unset_global`")
    async with ctx.database.transaction() as session:
        row = await _find(session, at, wanted.name)
        fleet_ids = await _fleet_ids(session, row)
        row.is_global = (row.is_global or wanted.set_global) and not wanted.unset_global
        change = _Change(session, at, row)
        await change.add_importers(wanted.add_importer_projects)
        await change.remove(ImportRow, ImportRow.project_id, ProjectRow, wanted.remove_importer_projects)
        await change.add_fleets(wanted.add_exported_fleets)
        await change.remove(ExportedFleetRow, ExportedFleetRow.fleet_id, FleetRow, wanted.remove_exported_fleets)
        await change.add_gateways(wanted.add_exported_gateways)
        await change.remove(
            ExportedGatewayRow, ExportedGatewayRow.gateway_id, GatewayRow, wanted.remove_exported_gateways
        )
        fleet_ids |= await _fleet_ids(session, row)
        await _settle(session, at, row, f"Export {row.name} updated", fleet_ids)
        return (await _to_exports(session, [row]))[0]


async def delete_export(ctx: Context, at: InProject, name: str) -> None:
    """Raises ResourceNotExists."""
    async with ctx.database.transaction() as session:
        row = await _find(session, at, name)
        fleet_ids = await _fleet_ids(session, row)
        await session.delete(row)
        await session.flush()
        await _settle(session, at, row, f"Export {name} deleted", fleet_ids)


async def list_imports(ctx: Context, at: InProject) -> list[Import]:
    """By the names of project and export."""
    async with ctx.database.session() as session:
        found = await queries.list_imports(session, at.project.id)
        ids = [one.export.id for one in found]
        fleets, gateways = await queries.list_fleets(session, ids), await queries.list_gateways(session, ids)
    return [
        Import(
            id=one.id,
            export=ImportExport(
                id=one.export.id,
                name=one.export.name,
                project_name=one.project_name,
                exported_fleets=[ImportExportedFleet(id=id, name=name) for id, name in fleets[one.export.id]],
                exported_gateways=[
                    ImportExportedGateway(id=id, name=name) for id, name in gateways[one.export.id]
                ],
            ),
        )
        for one in found
    ]


async def delete_import(ctx: Context, at: InProject, export_project: str, export_name: str) -> None:
    """Raises ResourceNotExists, and InvalidRequest for what is shared with all projects."""
    async with ctx.database.transaction() as session:
        found = await queries.list_imports(session, at.project.id)
        one = next((x for x in found if (x.project_name, x.export.name) == (export_project, export_name)), None)
        if one is None:
            raise ResourceNotExists(f"Project {at.project.name!r} imports no {export_project}/{export_name}")
        if one.id == one.export.id:
            raise InvalidRequest(
                f"{export_project}/{export_name} is shared with all projects: it cannot be given up"
            )
        await session.execute(delete(ImportRow).where(ImportRow.id == one.id))
        message = f"Import {export_project}/{export_name} deleted"
        await _settle(session, at, one.export, message, await _fleet_ids(session, one.export))


@dataclass(frozen=True)
class _Change:
    """Adds and removes what an export has, by names."""

    session: AsyncSession
    at: InProject
    row: ExportRow

    async def add_importers(self, names: Sequence[str]) -> None:
        if self.at.project.name in names:
            raise InvalidRequest(f"Project {self.at.project.name!r} has these itself: it cannot import them")
        where = (ProjectRow.name.in_(names), ProjectRow.deleted.is_(False))
        found = await self._named("Project", names, select(ProjectRow.name, ProjectRow.id).where(*where))
        present = set(await self._present(ImportRow.project_id, ImportRow.export_id))
        now = clock.now()
        values = [
            {"id": uuid.uuid4(), "export_id": self.row.id, "project_id": id, "created_at": now}
            for id in found
            if id not in present
        ]
        if values:
            await self.session.execute(insert(ImportRow), values)

    async def add_fleets(self, names: Sequence[str]) -> None:
        where = (FleetRow.name.in_(names), FleetRow.project_id == self.at.project.id, FleetRow.deleted.is_(False))
        found = await self._named("Fleet", names, select(FleetRow.name, FleetRow.id).where(*where))
        present = set(await self._present(ExportedFleetRow.fleet_id, ExportedFleetRow.export_id))
        values = [{"export_id": self.row.id, "fleet_id": id} for id in found if id not in present]
        if values:
            await self.session.execute(insert(ExportedFleetRow), values)

    async def add_gateways(self, names: Sequence[str]) -> None:
        mine = (GatewayRow.project_id == self.at.project.id, GatewayRow.deleted.is_(False))
        query = select(GatewayRow.name, GatewayRow.id).where(GatewayRow.name.in_(names), *mine)
        found = await self._named("Gateway", names, query)
        present = set(await self._present(ExportedGatewayRow.gateway_id, ExportedGatewayRow.export_id))
        values = [{"export_id": self.row.id, "gateway_id": id} for id in found if id not in present]
        if values:
            await self.session.execute(insert(ExportedGatewayRow), values)

    async def remove(self, table: Any, column: Any, of: Any, names: Sequence[str]) -> None:
        """Names that are not there are no error: what is wanted holds."""
        ids = select(of.id).where(of.name.in_(names))
        await self.session.execute(delete(table).where(table.export_id == self.row.id, column.in_(ids)))

    async def _named(self, what: str, names: Sequence[str], query: Any) -> list[UUID]:
        found = {name: id for name, id in await self.session.execute(query)} if names else {}
        unknown = next((name for name in names if name not in found), None)
        if unknown is not None:
            raise ResourceNotExists(f"{what} {unknown!r} does not exist")
        return list(found.values())

    async def _present(self, column: Any, export_column: Any) -> Iterable[UUID]:
        return await self.session.scalars(select(column).where(export_column == self.row.id))


async def _find(session: AsyncSession, at: InProject, name: str) -> ExportRow:
    row = await queries.find_export(session, at.project.id, name)
    if row is None:
        raise ResourceNotExists(f"Export {name!r} does not exist in project {at.project.name!r}")
    return row


async def _fleet_ids(session: AsyncSession, row: ExportRow) -> set[UUID]:
    return {id for id, _ in (await queries.list_fleets(session, [row.id]))[row.id]}


async def _settle(
    session: AsyncSession, at: InProject, row: ExportRow, message: str, fleet_ids: set[UUID]
) -> None:
    """The event, the end of who may no longer use the fleets, and the wake-ups of who now may."""
    await session.flush()
    target = project_target(at.project.id, at.project.name)
    await events.record(session, message, actor=at.caller.user_id, targets=[target])
    ended = await queries.revoke(session, sorted(fleet_ids))
    wake(session, *(f"job:{id}" for id in ended))
    for fleet_id in fleet_ids:
        for project_id in await queries.list_importers(session, fleet_id):
            wake(session, f"placement:{project_id}")


async def _to_exports(session: AsyncSession, rows: Sequence[ExportRow]) -> list[Export]:
    """Three queries for any number."""
    ids = [row.id for row in rows]
    fleets = await queries.list_fleets(session, ids)
    gateways = await queries.list_gateways(session, ids)
    projects = await queries.list_importing(session, ids)
    return [
        Export(
            id=row.id,
            name=row.name,
            is_global=row.is_global,
            imports=[ExportImport(project_name=name) for _, name in projects[row.id]],
            exported_fleets=[ExportedFleet(id=id, name=name) for id, name in fleets[row.id]],
            exported_gateways=[ExportedGateway(id=id, name=name) for id, name in gateways[row.id]],
        )
        for row in rows
    ]
