"""Instances: the machines of the projects."""

from __future__ import annotations

import json
from uuid import UUID

from dstack.core.errors import ResourceNotExists
from dstack.core.instances import HealthCheck, HealthEvent, HealthStatus, Instance
from dstack.core.schemas.instances import GetInstanceHealthChecksRequest, ListInstancesRequest
from dstack.server.access import Caller
from dstack.server.db.queries import fleets as fleet_queries
from dstack.server.db.queries import health
from dstack.server.db.queries import instances as queries
from dstack.server.db.tables import InstanceHealthCheckRow
from dstack.server.operations.context import Context, InProject
from dstack.server.operations.fleet_answers import to_instance
from dstack.server.operations.visibility import importing_projects, named_project_ids


async def list_instances(ctx: Context, caller: Caller, page: ListInstancesRequest) -> list[Instance]:
    """A page of the instances of all projects of the caller; admins see all."""
    async with ctx.database.session() as session:
        wanted = queries.InstanceFilter(
            project_ids=await named_project_ids(session, caller, page.project_names),
            fleet_ids=page.fleet_ids,
            only_active=page.only_active,
            imported_by=importing_projects(caller, page.project_names) if page.include_imported else None,
            before=None if page.prev_created_at is None else (page.prev_created_at, page.prev_id),
            ascending=page.ascending,
            limit=page.limit,
        )
        rows = await queries.list_page(session, wanted)
    return [to_instance(row) for row in rows]


async def get_instance(ctx: Context, at: InProject, id: UUID) -> Instance:
    """Raises ResourceNotExists."""
    async with ctx.database.session() as session:
        row = await queries.find_by_id(session, at.project.id, id)
    if row is None:
        raise ResourceNotExists(f"Instance {id} does not exist")
    return to_instance(row)


async def list_health_checks(
    ctx: Context, at: InProject, wanted: GetInstanceHealthChecksRequest
) -> list[HealthCheck]:
    """What the agent of the host has told, each time that it changed. Raises ResourceNotExists."""
    async with ctx.database.session() as session:
        fleet = await fleet_queries.find_by_name(session, at.project.id, wanted.fleet_name)
        if fleet is None:
            raise ResourceNotExists(f"Fleet {wanted.fleet_name!r} does not exist")
        instances = await fleet_queries.list_instances(session, [fleet["id"]])
        ids = [row["id"] for row in instances if row["instance_num"] == wanted.instance_num]
        if not ids:
            raise ResourceNotExists(f"Fleet {wanted.fleet_name!r} has no instance {wanted.instance_num}")
        rows = await health.list_checks(
            session, ids[-1], after=wanted.after, before=wanted.before, limit=wanted.limit
        )
    return [_to_check(row) for row in rows]


def _to_check(row: InstanceHealthCheckRow) -> HealthCheck:
    events = [
        HealthEvent(timestamp=row.collected_at, status=problem["status"], message=problem["message"])
        for problem in json.loads(row.problems)
    ]
    return HealthCheck(collected_at=row.collected_at, status=HealthStatus(row.status), events=events)
