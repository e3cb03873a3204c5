"""Instances: the machines of the projects."""

from __future__ import annotations

from uuid import UUID

from dstack.core.errors import ResourceNotExists
from dstack.core.instances import HealthCheck, Instance
from dstack.core.schemas.instances import GetInstanceHealthChecksRequest, ListInstancesRequest
from dstack.server.access import Caller
from dstack.server.db.queries import fleets as fleet_queries
from dstack.server.db.queries import instances as queries
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
    """Of the hardware monitor of the host; hosts without one have none. Raises ResourceNotExists."""
    async with ctx.database.session() as session:
        fleet = await fleet_queries.find_by_name(session, at.project.id, wanted.fleet_name)
        if fleet is None:
            raise ResourceNotExists(f"Fleet {wanted.fleet_name!r} does not exist")
        instances = await fleet_queries.list_instances(session, [fleet["id"]])
    if wanted.instance_num not in {row["instance_num"] for row in instances}:
        raise ResourceNotExists(f"Fleet {wanted.fleet_name!r} has no instance {wanted.instance_num}")
    return []
