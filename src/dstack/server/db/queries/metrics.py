"""Queries about what jobs use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from dstack.core.jobs import JobStatus
from dstack.server.db.tables import JobMetricsPointRow, JobRow

LIVE_JOBS = tuple(status.value for status in JobStatus if not status.is_finished())


class RunningJob(NamedTuple):
    """A job that can be measured."""

    id: UUID
    instance_id: UUID


async def list_running_jobs(session: AsyncSession) -> list[RunningJob]:
    """All jobs that run on hosts in reach, of all projects."""
    query = select(JobRow.id, JobRow.instance_id).where(
        JobRow.status == JobStatus.RUNNING.value, JobRow.unreachable_since.is_(None)
    )
    return [RunningJob(id, instance) for id, instance in await session.execute(query) if instance is not None]


async def add_points(session: AsyncSession, points: Sequence[dict[str, Any]]) -> None:
    """Each is the columns of `JobMetricsPointRow`."""
    if points:
        await session.execute(insert(JobMetricsPointRow), points)


async def list_points(
    session: AsyncSession, job_id: UUID, *, before_micro: int | None, limit: int
) -> list[JobMetricsPointRow]:
    """The newest ones, newest first."""
    query = select(JobMetricsPointRow).where(JobMetricsPointRow.job_id == job_id)
    if before_micro is not None:
        query = query.where(JobMetricsPointRow.timestamp_micro < before_micro)
    query = query.order_by(JobMetricsPointRow.timestamp_micro.desc()).limit(limit)
    return list(await session.scalars(query))


async def list_window(session: AsyncSession, job_id: UUID, seconds: int) -> list[JobMetricsPointRow]:
    """The newest point and those up to so many seconds before it, oldest first."""
    point = JobMetricsPointRow
    newest = select(func.max(point.timestamp_micro)).where(point.job_id == job_id).scalar_subquery()
    query = select(point).where(point.job_id == job_id, point.timestamp_micro >= newest - seconds * 1_000_000)
    return list(await session.scalars(query.order_by(point.timestamp_micro)))


async def list_newest_points(session: AsyncSession) -> dict[UUID, JobMetricsPointRow]:
    """The last one of each running job."""
    point = JobMetricsPointRow
    running = select(JobRow.id).where(JobRow.status == JobStatus.RUNNING.value)
    newest = (
        select(point.job_id, func.max(point.timestamp_micro).label("at"))
        .where(point.job_id.in_(running))
        .group_by(point.job_id)
        .subquery()
    )
    same = and_(point.job_id == newest.c.job_id, point.timestamp_micro == newest.c.at)
    return {row.job_id: row for row in await session.scalars(select(point).join(newest, same))}


async def find_job(session: AsyncSession, run_id: UUID, replica_num: int, job_num: int) -> JobRow | None:
    """The newest submission of the job."""
    query = select(JobRow).where(
        JobRow.run_id == run_id, JobRow.replica_num == replica_num, JobRow.job_num == job_num
    )
    return await session.scalar(query.order_by(JobRow.submission_num.desc()).limit(1))


async def purge(session: AsyncSession, *, live_before_micro: int, finished_before_micro: int) -> None:
    """Deletes points that are older: of jobs that live, and of those that have finished or are gone."""
    point, live = JobMetricsPointRow, select(JobRow.id).where(JobRow.status.in_(LIVE_JOBS))
    old_live = and_(point.timestamp_micro < live_before_micro, point.job_id.in_(live))
    old_finished = and_(point.timestamp_micro < finished_before_micro, point.job_id.not_in(live))
    for old in (old_live, old_finished):
        await session.execute(delete(point).where(old).execution_options(synchronize_session=False))
