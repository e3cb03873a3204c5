"""Fleets: what a project keeps compute in. The orchestrator fills, empties and removes them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.canonical import dump_json
from dstack.core.configurations.fleet import FleetConfiguration
from dstack.core.diff import can_update_fleet, changed_fleet_fields
from dstack.core.errors import Forbidden, InvalidRequest, ResourceNotExists
from dstack.core.events import EventTargetType
from dstack.core.fleets import Fleet, FleetPlan, FleetSpec, FleetStatus
from dstack.core.instances import InstanceStatus, InstanceTerminationReason
from dstack.core.names import check_resource_name, random_name
from dstack.core.plans import ApplyAction
from dstack.core.schemas.fleets import ApplyFleetPlanRequest, ListFleetsRequest
from dstack.server import clock, events
from dstack.server.access import Caller
from dstack.server.db.engine import wake
from dstack.server.db.locks import one_at_a_time
from dstack.server.db.queries import fleets as queries
from dstack.server.db.queries import sharing as sharing_queries
from dstack.server.db.tables import FleetRow, InstanceRow, JobRow, RunRow
from dstack.server.operations import fleet_answers, offers, ssh_hosts
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.visibility import importing_projects, named_project_ids
from dstack.server.planning.combining import of_fleet
from dstack.server.planning.new_instance import instance_values

FINISHED_RUNS = ("terminated", "failed", "done")
FINISHED_JOBS = ("terminated", "aborted", "failed", "done")


async def list_fleets(ctx: Context, caller: Caller, page: ListFleetsRequest) -> list[Fleet]:
    """A page of the fleets of all projects of the caller; admins see all."""
    async with ctx.database.session() as session:
        projects = await named_project_ids(
            session, caller, None if page.project_name is None else [page.project_name]
        )
        rows = await queries.list_page(
            session,
            projects,
            only_active=page.only_active,
            imported_by=importing_projects(caller, page.project_name) if page.include_imported else None,
            before=None if page.prev_created_at is None else (page.prev_created_at, page.prev_id),
            ascending=page.ascending,
            limit=page.limit,
        )
        return await fleet_answers.load(session, rows)


async def list_project_fleets(ctx: Context, at: InProject, *, with_imported: bool = False) -> list[Fleet]:
    """Oldest first; those of other projects last."""
    async with ctx.database.session() as session:
        rows = await queries.list_of_project(session, at.project.id, with_imported=with_imported)
        return await fleet_answers.load(session, rows)


async def get_fleet(ctx: Context, at: InProject, *, name: str | None, id: UUID | None) -> Fleet:
    """Raises ResourceNotExists; Forbidden for one that the caller sees neither as a member nor by an import."""
    if name is None and id is None:
        raise InvalidRequest("Say which fleet: give its name or its id")
    async with ctx.database.session() as session:
        if id is not None:
            row = await queries.find_by_id(session, at.project.id, id)
        else:
            row = await queries.find_by_name(session, at.project.id, name or "")
        if at.role is None and (row is None or not await _is_imported_by(session, at.caller, row["id"])):
            raise Forbidden(f"Access denied: you are not a member of project {at.project.name!r}")
        if row is None:
            raise ResourceNotExists(f"Fleet {str(id) if id is not None else name!r} does not exist")
        return (await fleet_answers.load(session, [row]))[0]


async def _is_imported_by(session: AsyncSession, caller: Caller, fleet_id: UUID) -> bool:
    imported = sharing_queries.imported_by(importing_projects(caller, None))
    return (
        await session.scalar(select(FleetRow.id).where(FleetRow.id == fleet_id, FleetRow.id.in_(imported)))
        is not None
    )


async def get_plan(ctx: Context, at: InProject, spec: FleetSpec) -> FleetPlan:
    """What applying would do, and what the fleet could be made of; nothing is stored."""
    check(spec.configuration)
    spec = ssh_hosts.without_keys(spec)
    async with ctx.database.session() as session:
        current = await _find_current(session, at.project.id, spec.configuration.name)
    market = await offers.load_market(ctx.database, ctx.backends, at.project.id)
    found = offers.fleet_offers(market, spec)
    can_update = current is not None and can_update_fleet(current.spec, spec)
    return FleetPlan(
        project_name=at.project.name,
        user=at.caller.username,
        spec=spec,
        effective_spec=spec,
        current_resource=current,
        offers=found[: offers.SHOWN_OFFERS],
        total_offers=len(found),
        max_offer_price=offers.highest_price(found),
        action=ApplyAction.UPDATE if can_update else ApplyAction.CREATE,
    )


def check(configuration: FleetConfiguration) -> None:
    """Raises InvalidRequest for what cannot be a fleet of this server."""
    if configuration.ssh_config is not None:
        ssh_hosts.check(configuration, configuration.ssh_config)
    elif configuration.nodes is None:
        raise InvalidRequest(
            "A fleet needs `nodes`: how many instances it may have, such as `nodes: 0..2`; or `ssh_config`"
        )
    if configuration.name is not None:
        try:
            check_resource_name(configuration.name, "fleet")
        except ValueError as error:
            raise InvalidRequest(str(error)) from None


async def apply(ctx: Context, at: InProject, wanted: ApplyFleetPlanRequest) -> Fleet:
    """Makes a fleet, or changes the one of that name in place."""
    keyed = wanted.plan.spec
    check(keyed.configuration)
    spec = ssh_hosts.without_keys(keyed)
    if keyed.configuration.ssh_config is not None:
        _assert_may_manage_hosts(ctx, at)
    async with ctx.database.transaction() as session:
        # One at a time in a project, so that a name is given to one fleet only.
        await one_at_a_time(session, f"names of fleets:{at.project.id}")
        current = await _find_current(session, at.project.id, spec.configuration.name)
        if not wanted.force:
            _assert_unchanged(current, wanted.plan.current_resource)
        if current is not None:
            fleet_id = await _update(session, at, current, spec)
        else:
            named = await _named(session, at.project.id, spec)
            fleet_id = (await add_fleet(session, at.project.id, named, actor=at.caller.user_id)).id
        if keyed.configuration.ssh_config is not None:
            await _sync_hosts(session, ctx, fleet_id, keyed.configuration, actor=at.caller.user_id)
    return await get_fleet(ctx, at, name=None, id=fleet_id)


def _assert_may_manage_hosts(ctx: Context, at: InProject) -> None:
    if not ctx.permissions.may_manage_ssh_fleets(at.caller.is_admin, at.role):
        raise Forbidden("Only admins of the project may manage SSH fleets on this server")


async def _sync_hosts(
    session: AsyncSession, ctx: Context, fleet_id: UUID, configuration: FleetConfiguration, *, actor: UUID
) -> None:
    """One instance a host: new ones are added, those whose host is no longer named are asked to go."""
    ssh = configuration.ssh_config
    assert ssh is not None
    await one_at_a_time(session, "hosts of SSH fleets")
    await ssh_hosts.assert_free(session, configuration, but_for=fleet_id)
    fleet = await session.get_one(FleetRow, fleet_id)
    known = await _hosts_of(session, fleet_id)
    coming, going, nums = ssh_hosts.changes({name: row.instance_num for name, row in known.items()}, ssh)
    gone = [known[name] for name in going]
    if gone:
        await _ask_to_go(session, fleet, gone, actor=actor)
    rows = ssh_hosts.host_rows(
        fleet, configuration, coming, nums, now=clock.now(), encryption=ctx.encryption, known=known
    )
    targets = await _insert_instances(session, fleet.project_id, rows)
    if targets:
        await events.record(session, "Instance created", actor=actor, targets=targets)


async def _hosts_of(session: AsyncSession, fleet_id: UUID) -> dict[str, InstanceRow]:
    """The living instances of the fleet's hosts."""
    gone = (InstanceStatus.TERMINATING.value, InstanceStatus.TERMINATED.value)
    query = select(InstanceRow).where(InstanceRow.fleet_id == fleet_id, InstanceRow.status.not_in(gone))
    rows = await session.scalars(query.where(InstanceRow.terminate_requested.is_(None)))
    return {row.ssh_hostname: row for row in rows if row.ssh_hostname is not None}


async def _find_current(session: AsyncSession, project_id: UUID, name: str | None) -> Fleet | None:
    row = None if name is None else await queries.find_by_name(session, project_id, name)
    return None if row is None else (await fleet_answers.load(session, [row]))[0]


def _assert_unchanged(current: Fleet | None, planned: Fleet | None) -> None:
    if current is None and planned is None:
        return
    if current is None or planned is None or (current.id, current.spec) != (planned.id, planned.spec):
        raise InvalidRequest("The fleet has changed since the plan was made; apply again")


async def _named(session: AsyncSession, project_id: UUID, spec: FleetSpec) -> FleetSpec:
    if spec.configuration.name is not None:
        return spec
    chance = random.Random()
    while True:
        name = random_name(chance)
        if await queries.find_by_name(session, project_id, name) is None:
            break
    return spec.model_copy(update={"configuration": spec.configuration.model_copy(update={"name": name})})


async def add_fleet(
    session: AsyncSession, project_id: UUID, spec: FleetSpec, *, actor: UUID | None, secrets: str | None = None
) -> FleetRow:
    """The rows of the fleet and of the instances it starts with, the event, and the wake-ups. The spec has a name
    and no private keys."""
    name = spec.configuration.name
    assert name is not None
    now = clock.now()
    row = FleetRow(
        id=uuid.uuid4(),
        project_id=project_id,
        name=name,
        spec=dump_json(spec),
        secrets=secrets,
        created_at=now,
        last_processed_at=now,
        last_consolidated_at=now,
        status=FleetStatus.ACTIVE.value,
    )
    session.add(row)
    await session.flush()
    target = _target(row.id, name, project_id)
    instances = await _add_instances(session, row, spec)
    await events.record(session, "Fleet created", actor=actor, targets=[target, *instances])
    wake(session, f"fleet:{row.id}", f"placement:{project_id}")
    return row


async def _add_instances(session: AsyncSession, row: FleetRow, spec: FleetSpec) -> list[events.Target]:
    nodes, terms = spec.configuration.nodes, of_fleet(spec)
    values = [
        instance_values(
            terms,
            fleet_id=row.id,
            fleet_name=row.name,
            project_id=row.project_id,
            num=num,
            now=row.created_at,
        )
        for num in range(nodes.target if nodes is not None else 0)
    ]
    return await _insert_instances(session, row.project_id, values)


async def _insert_instances(
    session: AsyncSession, project_id: UUID, values: list[dict[str, Any]]
) -> list[events.Target]:
    """Adds and wakes them; what an event about them names."""
    if values:
        await session.execute(insert(InstanceRow), values)
    wake(session, *(f"instance:{one['id']}" for one in values))
    kind = EventTargetType.INSTANCE.value
    return [events.Target(kind, one["id"], one["name"], project_id) for one in values]


async def _update(session: AsyncSession, at: InProject, current: Fleet, spec: FleetSpec) -> UUID:
    """In place: the instances that it has stay. Fruitless attempts to fill it are forgotten."""
    row = await session.get_one(FleetRow, current.id)
    if row.deleted_at is not None:
        raise InvalidRequest(f"Fleet {current.name!r} is being deleted; apply again once it is gone")
    if not can_update_fleet(current.spec, spec):
        changed = ", ".join(changed_fleet_fields(current.spec, spec))
        raise InvalidRequest(
            f"Fleet {current.name!r} cannot be changed in place (changed: {changed}); delete it first"
        )
    if current.spec != spec:
        row.spec, row.consolidation_attempt = dump_json(spec), 0
        target = _target(row.id, row.name, row.project_id)
        await events.record(session, "Fleet updated", actor=at.caller.user_id, targets=[target])
        wake(session, f"fleet:{row.id}", f"placement:{row.project_id}")
    return row.id


async def delete_fleets(ctx: Context, at: InProject, names: Iterable[str]) -> None:
    """All or none; unknown ones are ignored. Raises InvalidRequest while a run uses one."""
    async with ctx.database.transaction() as session:
        for name in dict.fromkeys(names):
            row = await _lock(session, at.project.id, name)
            if row is None or row.deleted_at is not None:
                continue
            await _assert_unused(session, row)
            row.deleted_at = clock.now()
            target = _target(row.id, row.name, row.project_id)
            await events.record(session, "Fleet deletion requested", actor=at.caller.user_id, targets=[target])
            wake(session, f"fleet:{row.id}", f"placement:{row.project_id}")


async def delete_instances(ctx: Context, at: InProject, name: str, nums: list[int]) -> None:
    """All or none. Raises ResourceNotExists for an unknown one, InvalidRequest while a run uses one."""
    async with ctx.database.transaction() as session:
        row = await _lock(session, at.project.id, name)
        if row is None:
            raise ResourceNotExists(f"Fleet {name!r} does not exist")
        instances = await _instances(session, row, nums)
        await _ask_to_go(session, row, instances, actor=at.caller.user_id)


async def _ask_to_go(session: AsyncSession, row: FleetRow, instances: list[InstanceRow], *, actor: UUID) -> None:
    """Raises InvalidRequest while a run uses one."""
    ids = [instance.id for instance in instances]
    users = await _jobs_on(session, JobRow.instance_id.in_(ids))
    if users:
        raise InvalidRequest(
            f"These instances of fleet {row.name!r} are in use by {_listed(users)}; stop these first"
        )
    asked = update(InstanceRow).where(InstanceRow.id.in_(ids), InstanceRow.terminate_requested.is_(None))
    reason = InstanceTerminationReason.TERMINATED_BY_USER.value
    await session.execute(asked.values(terminate_requested=reason))
    kind = EventTargetType.INSTANCE.value
    targets = [events.Target(kind, one.id, one.name, row.project_id) for one in instances]
    await events.record(session, "Instance termination requested", actor=actor, targets=targets)
    wake(session, *(f"instance:{id}" for id in ids))


async def _lock(session: AsyncSession, project_id: UUID, name: str) -> FleetRow | None:
    where = (FleetRow.project_id == project_id, FleetRow.name == name, FleetRow.deleted.is_(False))
    return await session.scalar(select(FleetRow).where(*where).with_for_update())


async def _instances(session: AsyncSession, row: FleetRow, nums: list[int]) -> list[InstanceRow]:
    """The living ones of these numbers."""
    living = (InstanceRow.deleted.is_(False), InstanceRow.status != InstanceStatus.TERMINATED.value)
    query = select(InstanceRow).where(InstanceRow.fleet_id == row.id, *living, InstanceRow.instance_num.in_(nums))
    found = list(await session.scalars(query.order_by(InstanceRow.instance_num)))
    missing = sorted(set(nums) - {instance.instance_num for instance in found})
    if missing or not nums:
        which = ", ".join(map(str, missing))
        raise ResourceNotExists(f"Fleet {row.name!r} has no instance {which}" if which else "No instance is named")
    return found


async def _assert_unused(session: AsyncSession, row: FleetRow) -> None:
    """Neither by a job that is on one of its instances or about to be, nor by a run that is bound to it."""
    runs = select(RunRow.run_name).where(
        RunRow.fleet_id == row.id, RunRow.status.not_in(FINISHED_RUNS), RunRow.deleted.is_(False)
    )
    mine = select(InstanceRow.id).where(InstanceRow.fleet_id == row.id)
    jobs = await _jobs_on(session, (JobRow.fleet_id == row.id) | JobRow.instance_id.in_(mine))
    users = sorted({*await session.scalars(runs.limit(5)), *jobs})
    if users:
        raise InvalidRequest(f"Fleet {row.name!r} is in use by {_listed(users)}; stop these first")


async def _jobs_on(session: AsyncSession, where: ColumnElement[bool]) -> list[str]:
    """Names of a few runs with unfinished jobs there."""
    query = select(RunRow.run_name).join(JobRow, JobRow.run_id == RunRow.id)
    query = query.where(where, JobRow.status.not_in(FINISHED_JOBS)).distinct().limit(5)
    return sorted(await session.scalars(query))


def _listed(names: list[str]) -> str:
    return f"run{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _target(id: UUID, name: str, project_id: UUID) -> events.Target:
    return events.Target(EventTargetType.FLEET.value, id, name, project_id)
