"""Counts and lists of what is not over, over all projects; no query looks at finished runs or jobs."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.instances import InstanceStatus
from dstack.core.jobs import JobStatus
from dstack.server.db.queries.metrics import LIVE_JOBS
from dstack.server.db.tables import FleetRow, InstanceRow, JobRow, ProjectRow, RunRow, UserRow
from dstack.server.db.tables.runs import RUN_IS_ACTIVE

LIVE_INSTANCES = tuple(status.value for status in InstanceStatus if status is not InstanceStatus.TERMINATED)


class Count(NamedTuple):
    """How many of a project have a status."""

    project: str
    status: str
    number: int


class LiveInstance(NamedTuple):
    """An instance with the names of its project and fleet."""

    project: str
    fleet: str | None
    row: InstanceRow


class RunningJob(NamedTuple):
    """A job that runs, with the names around it, and the backend and price of its instance."""

    project: str
    user: str
    run: str
    backend: str | None
    price: float | None
    row: JobRow


async def count_runs(session: AsyncSession) -> list[Count]:
    query = select(ProjectRow.name, RunRow.status, func.count()).join(
        ProjectRow, ProjectRow.id == RunRow.project_id
    )
    rows = await session.execute(query.where(RUN_IS_ACTIVE).group_by(ProjectRow.name, RunRow.status))
    return [Count(*row) for row in rows]


async def count_jobs(session: AsyncSession) -> list[Count]:
    query = select(ProjectRow.name, JobRow.status, func.count()).join(
        ProjectRow, ProjectRow.id == JobRow.project_id
    )
    rows = await session.execute(
        query.where(JobRow.status.in_(LIVE_JOBS)).group_by(ProjectRow.name, JobRow.status)
    )
    return [Count(*row) for row in rows]


async def list_instances(session: AsyncSession) -> list[LiveInstance]:
    query = (
        select(ProjectRow.name, FleetRow.name, InstanceRow)
        .join(ProjectRow, ProjectRow.id == InstanceRow.project_id)
        .outerjoin(FleetRow, FleetRow.id == InstanceRow.fleet_id)
        .where(InstanceRow.status.in_(LIVE_INSTANCES), InstanceRow.deleted.is_(False))
    )
    return [LiveInstance(*row) for row in await session.execute(query)]


async def list_running_jobs(session: AsyncSession) -> list[RunningJob]:
    query = (
        select(ProjectRow.name, UserRow.name, RunRow.run_name, InstanceRow.backend, InstanceRow.price, JobRow)
        .join(RunRow, RunRow.id == JobRow.run_id)
        .join(ProjectRow, ProjectRow.id == JobRow.project_id)
        .join(UserRow, UserRow.id == RunRow.user_id)
        .outerjoin(InstanceRow, InstanceRow.id == JobRow.instance_id)
        .where(JobRow.status == JobStatus.RUNNING.value)
    )
    return [RunningJob(*row) for row in await session.execute(query)]
