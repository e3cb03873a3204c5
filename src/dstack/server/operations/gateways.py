"""Gateways of a project: what publishes its services under a domain. The orchestrator sets them up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.configurations.gateway import GatewayConfiguration
from dstack.core.diff import can_update_gateway, changed_gateway_fields
from dstack.core.errors import Forbidden, InvalidRequest, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.gateways import Gateway, GatewayPlan, GatewaySpec, GatewayStatus
from dstack.core.plans import ApplyAction
from dstack.core.schemas.gateways import ApplyGatewayPlanRequest
from dstack.server import events
from dstack.server.db.engine import wake
from dstack.server.db.queries import gateways as queries
from dstack.server.db.queries import sharing as sharing_queries
from dstack.server.db.tables import GatewayRow, ProjectRow
from dstack.server.operations import gateway_answers, new_gateways
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.visibility import importing_projects


async def list_gateways(ctx: Context, at: InProject, *, with_imported: bool) -> list[Gateway]:
    """Newest first; those of other projects last."""
    async with ctx.database.session() as session:
        rows = await queries.list_of_project(session, at.project.id, with_imported=with_imported)
        return await _load(session, at, rows)


async def get_gateway(ctx: Context, at: InProject, name: str) -> Gateway:
    """Raises ResourceNotExists; Forbidden for one that the caller sees neither as a member nor by an import."""
    async with ctx.database.session() as session:
        row = await queries.find_by_name(session, at.project.id, name)
        if at.role is None and (row is None or not await _is_imported(session, at, row["id"])):
            raise Forbidden(f"Access denied: you are not a member of project {at.project.name!r}")
        return (await _load(session, at, [_found(at, name, row)]))[0]


async def _is_imported(session: AsyncSession, at: InProject, gateway_id: UUID) -> bool:
    imported = sharing_queries.gateways_imported_by(importing_projects(at.caller, None))
    found = select(GatewayRow.id).where(GatewayRow.id == gateway_id, GatewayRow.id.in_(imported))
    return await session.scalar(found) is not None


async def get_plan(ctx: Context, at: InProject, spec: GatewaySpec) -> GatewayPlan:
    """What applying would do; whether the backend can is only said when it is applied, as in the reference."""
    new_gateways.check_name(spec.configuration)
    current = await _find_current(ctx, at, spec.configuration.name)
    return GatewayPlan(
        project_name=at.project.name,
        user=at.caller.username,
        spec=spec,
        effective_spec=spec.model_copy(update={"configuration": new_gateways.without_keys(spec.configuration)}),
        current_resource=current,
        action=ApplyAction.UPDATE if current is not None and _can_update(current, spec) else ApplyAction.CREATE,
    )


def _can_update(current: Gateway, spec: GatewaySpec) -> bool:
    is_failed = current.status is GatewayStatus.FAILED
    return not is_failed and can_update_gateway(GatewaySpec(configuration=current.configuration), spec)


async def _find_current(ctx: Context, at: InProject, name: str | None) -> Gateway | None:
    if name is None:
        return None
    async with ctx.database.session() as session:
        row = await queries.find_by_name(session, at.project.id, name)
        return None if row is None else (await _load(session, at, [row]))[0]


async def apply(ctx: Context, at: InProject, wanted: ApplyGatewayPlanRequest) -> Gateway:
    """Makes a gateway, or changes the one of that name in place."""
    spec = wanted.plan.spec
    new_gateways.check_name(spec.configuration)
    current = await _find_current(ctx, at, spec.configuration.name)
    if current is None:
        return await create_gateway(ctx, at, spec.configuration)
    planned = wanted.plan.current_resource
    if not wanted.force and (planned is None or planned.configuration != current.configuration):
        raise InvalidRequest("The gateway has changed since the plan was made; apply again")
    if not _can_update(current, spec):
        changed = ", ".join(changed_gateway_fields(current.configuration, spec.configuration)) or "it has failed"
        raise InvalidRequest(f"Gateway {current.name!r} cannot be changed in place ({changed}); delete it first")
    await _update(ctx, at, current, spec.configuration)
    return await get_gateway(ctx, at, current.name)


async def _update(ctx: Context, at: InProject, current: Gateway, configuration: GatewayConfiguration) -> None:
    async with ctx.database.transaction() as session:
        row = await session.get_one(GatewayRow, current.id)
        row.configuration = dump_json(new_gateways.without_keys(configuration))
        if configuration.domain != current.configuration.domain:
            row.wildcard_domain = _wildcard(configuration.domain)
        if configuration.default is True:
            await _make_default(session, at, current.id)
        if configuration.default is False:
            await _unset_default(session, at, current.id)
        await _record(session, at, row, "Gateway updated")


async def create_gateway(ctx: Context, at: InProject, configuration: GatewayConfiguration) -> Gateway:
    """Submits a gateway; whether it comes up shows later, as its status. Raises ResourceExists, InvalidRequest,
    BackendNotAvailable."""
    new_gateways.check_name(configuration)
    async with ctx.database.transaction() as session:
        row = await new_gateways.add(ctx, session, at, configuration)
        row.wildcard_domain = _wildcard(configuration.domain)
        name = row.name
        if await _becomes_default(session, at, configuration):
            await _make_default(session, at, row.id)
        await _record(session, at, row, "Gateway created")
    return await get_gateway(ctx, at, name)


async def _becomes_default(session: AsyncSession, at: InProject, configuration: GatewayConfiguration) -> bool:
    """The first one does, unless its file says otherwise."""
    if configuration.default is not None:
        return configuration.default
    known = await session.scalar(select(ProjectRow.default_gateway_id).where(ProjectRow.id == at.project.id))
    return known is None


async def delete_gateways(ctx: Context, at: InProject, names: Iterable[str]) -> None:
    """All or none; unknown ones are ignored. Services that use one lose their address."""
    async with ctx.database.transaction() as session:
        for name in dict.fromkeys(names):
            found = await queries.find_by_name(session, at.project.id, name)
            if found is None or found["delete_requested"]:
                continue
            row = await session.get_one(GatewayRow, found["id"])
            row.delete_requested = True
            if not (await queries.list_replicas(session, [row.id]))[row.id]:
                row.deleted = True  # there is no machine to end
            uses = ProjectRow.default_gateway_id == row.id
            await session.execute(update(ProjectRow).where(uses).values(default_gateway_id=None))
            await _record(session, at, row, "Gateway deletion requested")


async def set_default(ctx: Context, at: InProject, name: str, gateway_project: str | None) -> None:
    """Of the project's own, or of those that it imports from `gateway_project`. Raises ResourceNotExists."""
    owner = gateway_project or at.project.name
    async with ctx.database.transaction() as session:
        rows = await queries.list_of_project(session, at.project.id, with_imported=True)
        row = next((row for row in rows if (row["project_name"], row["name"]) == (owner, name)), None)
        if row is None:
            shown = name if owner == at.project.name else f"{owner}/{name}"
            raise ResourceNotExists(f"Gateway {shown!r} does not exist in project {at.project.name!r}")
        await _make_default(session, at, row["id"])
        gateway = await session.get_one(GatewayRow, row["id"])
        await _record(session, at, gateway, f"Gateway set as default of project {at.project.name}")


async def set_wildcard_domain(ctx: Context, at: InProject, name: str, domain: str) -> Gateway:
    """Raises ResourceNotExists."""
    async with ctx.database.transaction() as session:
        found = _found(at, name, await queries.find_by_name(session, at.project.id, name))
        row = await session.get_one(GatewayRow, found["id"])
        plain = domain.removeprefix("*.").strip()
        if not plain or any(character.isspace() for character in plain):
            raise InvalidRequest(f"{domain!r} is not a domain: write one like *.example.com")
        configuration = GatewayConfiguration.model_validate_json(row.configuration, extra="ignore")
        row.configuration = dump_json(configuration.model_copy(update={"domain": plain}))
        row.wildcard_domain = _wildcard(plain)
        await _record(session, at, row, "Gateway updated")
    return await get_gateway(ctx, at, name)


def _wildcard(domain: str | None) -> str | None:
    return None if domain is None else f"*.{domain.removeprefix('*.')}"


async def _make_default(session: AsyncSession, at: InProject, gateway_id: UUID) -> None:
    own = update(ProjectRow).where(ProjectRow.id == at.project.id)
    await session.execute(own.values(default_gateway_id=gateway_id))


async def _unset_default(session: AsyncSession, at: InProject, gateway_id: UUID) -> None:
    uses = (ProjectRow.id == at.project.id, ProjectRow.default_gateway_id == gateway_id)
    await session.execute(update(ProjectRow).where(*uses).values(default_gateway_id=None))


async def _record(session: AsyncSession, at: InProject, row: GatewayRow, message: str) -> None:
    target = events.Target(EventTargetType.GATEWAY.value, row.id, row.name, row.project_id)
    await events.record(session, message, actor=at.caller.user_id, targets=[target])
    wake(session, f"gateway:{row.id}")


async def _load(session: AsyncSession, at: InProject, rows: Sequence[RowMapping]) -> list[Gateway]:
    default = await session.scalar(select(ProjectRow.default_gateway_id).where(ProjectRow.id == at.project.id))
    return await gateway_answers.load(session, rows, default)


def _found(at: InProject, name: str, row: RowMapping | None) -> RowMapping:
    if row is None:
        raise ResourceNotExists(f"Gateway {name!r} does not exist in project {at.project.name!r}")
    return row
